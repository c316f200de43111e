"""The steps that docs/scale.md computes, and the published speed of a GPU and its links."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks._ranks.costs import (
    Message,
    Step,
    bank_flops,
    batch_flops,
    exponentials,
    messages,
    read_bytes,
)

COCO_IMAGES = 118_287
COCO_CLASSES_OF_IMAGE = 14
"""The middle of the range that the benchmarks draw from; not counted in the data set."""

CITYSCAPES = Step(
    ranks=4,
    images=2,
    anchors=1024,
    dim=256,
    num_classes=19,
    pixels_per_image=10,
    pixel_slots=5000,
    region_slots=5000,
    bank_bytes=2,
)
COCO = replace(CITYSCAPES, images=4, num_classes=171, pixel_slots=500, region_slots=500)


def _whole_data_set(pixels_per_image: int) -> Step:
    """Make a bank with slots for every image in every class; absent classes are not written."""
    ranks = 8
    return replace(
        COCO,
        ranks=ranks,
        pixels_per_image=pixels_per_image,
        pixel_slots=-(-COCO_IMAGES * pixels_per_image // ranks),
        region_slots=-(-COCO_IMAGES // ranks),
        sharded=True,
        written=COCO_IMAGES * COCO_CLASSES_OF_IMAGE * (pixels_per_image + 1),
    )


BILLION = replace(
    COCO, ranks=64, images=2, pixel_slots=91_376, region_slots=0, sharded=True
)  # 64 · 171 · 91,376 = 1,000,018,944

CASES = {
    "Cityscapes": CITYSCAPES,
    "Cityscapes, sharded": replace(CITYSCAPES, pixel_slots=1250, region_slots=1250, sharded=True),
    "COCO-Stuff, 500 slots": COCO,
    "COCO-Stuff, every image": _whole_data_set(10),
    "COCO-Stuff, every image, 2 pixels": _whole_data_set(2),
    "10⁹ entries": BILLION,
    "10⁹ entries, D = 64": replace(BILLION, dim=64),
    "10⁹ entries, D = 64, 128 anchors": replace(BILLION, dim=64, anchors=128),
}


@dataclass(frozen=True)
class Device:
    """Rates per second of one GPU and of its links, each in one direction.

    In bfloat16 flops, bytes of memory, exponentials, and bytes between the GPUs of a node and to
    other nodes; and the number of GPUs of a node.
    """

    flops: float
    memory: float
    exponentials: float
    link: float
    network: float
    node: int


H200 = Device(flops=790e12, memory=4.3e12, exponentials=3.7e12, link=450e9, network=50e9, node=8)


def seconds_at_least(step: Step, device: Device) -> dict[str, float]:
    """Compute lower bounds for one rank; each counts only one kind of work."""
    return {
        "products": (bank_flops(step) + batch_flops(step)) / device.flops,
        "exponentials": exponentials(step) / device.exponentials,
        "reading": read_bytes(step) / device.memory,
        "messages": sum(_seconds_of(message, step, device) for message in messages(step)),
    }


def _seconds_of(message: Message, step: Step, device: Device) -> float:
    """Compute the time of a message without latency.

    An all-gather enters each node once, over the network links of all of its GPUs.
    """
    from_node = min(step.ranks, device.node) - 1
    from_network = step.ranks - 1 - from_node
    if message.collective == "all-gather":
        within = (step.ranks - 1) * message.parcel / device.link
        return max(within, from_network * message.parcel / (device.network * device.node))
    return max(
        from_node * message.parcel / device.link, from_network * message.parcel / device.network
    )
