"""DistributedDataParallel: several ranks train as one, with contrast, bank and projection head.

    torchrun --nproc-per-node 2 ddp.py
    torchrun --nproc-per-node 2 ddp.py --wrap-loss

Uses NCCL on GPUs and gloo otherwise. With `gather=True` each rank contrasts with the pixels of all
ranks, and all banks hold the same entries. Every rank must call the loss.

The loss projects the sampled pixels only, so the network does not call the projection head. There
are two ways to average the head's gradient over the ranks:

1. The head belongs to the network that DDP wraps, and the loss is given the same module (default).
2. DDP wraps the loss too (`--wrap-loss`). Its parameters must then be passed to the optimizer.
"""

import sys
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES, EPOCHS, BATCH, WIDTH = 5, 4, 4, 32
IGNORE = 255  # the label of pixels without a class in your data


class Network(nn.Module):
    """Return logits, and the features that the loss samples from."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 5, padding=2, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
        )
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(images)
        return self.classifier(features), features


def scenes(count: int) -> TensorDataset:
    """Squares of five noisy colors, (count, 3, 32, 32), and their labels."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(CLASSES, (count, 4, 4), generator=generator)
    labels = classes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return TensorDataset(colors + 0.6 * torch.randn(count, 3, 32, 32, generator=generator), labels)


def main(wrap_loss: bool) -> None:
    on_gpu = torch.cuda.is_available()
    # If a rank fails, the others stop after this timeout.
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=2))
    rank = distributed.get_rank()
    device = torch.device("cuda", distributed.get_node_local_rank()) if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(0)  # equal weights on all ranks; DDP also ensures this
    # Layer normalization does not depend on the other pixels, so not on the number of ranks either.
    network, head = Network(), ProjectionHead(WIDTH, 64, norm="layer")
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=6),
        bank=MemoryBank(
            CLASSES,
            64,
            pixel_slots=100,
            region_slots=50,
            pixels_per_image=2,
            pixels_per_region=32,
            ignore_index=IGNORE,
        ),
        projection=head,
        gather=True,
    ).to(device)
    parameters = [*network.parameters(), *head.parameters()]
    loss_module: nn.Module = contrast_loss
    if wrap_loss:
        loss_module = DistributedDataParallel(contrast_loss)
    else:
        network.head = head
    model = DistributedDataParallel(network.to(device))
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)

    train, held_out = scenes(64), scenes(96)[64:]
    sampler = DistributedSampler(train)
    loader = DataLoader(train, batch_size=BATCH, sampler=sampler)
    torch.manual_seed(rank)  # a different choice of anchors on each rank
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            logits, features = model(images)
            segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
            contrast = loss_module(features, labels, logits)
            optimizer.zero_grad()
            # The average over ranks, which DDP computes, is the gradient of the global loss.
            (segmentation + 0.1 * contrast).backward()
            optimizer.step()
        mean = contrast.detach().clone()
        distributed.all_reduce(mean)
        if rank == 0:
            mean /= distributed.get_world_size()
            print(f"epoch {epoch}: cross entropy {segmentation:.3f}, contrast {mean:.3f}")

    model.eval()
    images, labels = (tensor.to(device) for tensor in held_out)
    with torch.no_grad():
        predicted = model(images)[0].argmax(1)
    if rank == 0:
        print(f"held-out pixel accuracy {(predicted == labels).float().mean():.3f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(wrap_loss="--wrap-loss" in sys.argv)
