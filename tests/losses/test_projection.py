"""The projection head: rows and maps alike, with each normalization."""

import pytest
import torch
from torch.nn import functional as F

from pixcontrast import ProjectionHead

HEADS = [("mlp", "batch"), ("mlp", "layer"), ("mlp", None), ("linear", "batch"), ("linear", None)]


@pytest.mark.parametrize(("kind", "norm"), HEADS)
@pytest.mark.parametrize("shape", [(9, 8), (2, 8, 5), (2, 8, 5, 4), (2, 8, 3, 2, 4)])
def test_rows_and_maps_of_any_shape(kind, norm, shape):
    head = ProjectionHead(8, 6, kind=kind, norm=norm)
    features = torch.randn(shape, requires_grad=True)
    embedding = head(features)
    assert embedding.shape == (shape[0], 6, *shape[2:])
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(shape[0], *shape[2:]))
    embedding[..., 0].sum().backward()
    assert torch.isfinite(features.grad).all()
    # A 1×1 convolution: the same numbers whatever the shape of the map.
    as_points = features.flatten(2).movedim(1, -1).reshape(-1, 8) if len(shape) > 2 else features
    expected = head.train()(as_points)
    actual = embedding.flatten(2).movedim(1, -1).reshape(-1, 6) if len(shape) > 2 else embedding
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert ProjectionHead(8, 6, hidden=32).layers[0].out_channels == 32


@pytest.mark.parametrize(("kind", "norm"), HEADS)
@pytest.mark.parametrize("shape", [(0, 8), (2, 8, 0, 5), (0, 8, 4, 4)])
def test_projection_of_nothing(kind, norm, shape):
    features = torch.zeros(shape, requires_grad=True)
    embedding = ProjectionHead(8, 6, kind=kind, norm=norm)(features)
    assert embedding.shape == (shape[0], 6, *shape[2:])
    embedding.sum().backward()


@pytest.mark.parametrize(("kind", "norm"), HEADS[1:])
def test_a_pixel_does_not_depend_on_the_others(kind, norm):
    head = ProjectionHead(8, 6, kind=kind, norm=norm).double()
    rows = torch.randn(20, 8, dtype=torch.float64)
    torch.testing.assert_close(head(rows)[3:5], head(rows[3:5]))


def test_the_formula_of_each_normalization():
    rows = torch.randn(20, 8, dtype=torch.float64)
    norms = {
        "batch": lambda hidden: F.batch_norm(hidden, None, None, training=True),
        "layer": lambda hidden: F.layer_norm(hidden, (8,)),
        None: lambda hidden: hidden,
    }
    for norm, formula in norms.items():
        head = ProjectionHead(8, 6, norm=norm).double()
        first, last = head.layers[0], head.layers[3]
        hidden = formula(rows @ first.weight[:, :, 0].T + first.bias).relu()
        expected = F.normalize(hidden @ last.weight[:, :, 0].T + last.bias)
        torch.testing.assert_close(head(rows), expected)
        torch.testing.assert_close(head(rows.T.view(1, 8, 4, 5)).flatten(2)[0].T, expected)


@pytest.mark.parametrize("norm", ["batch", "layer", None])
@pytest.mark.parametrize("shape", [(9, 8), (2, 8, 5, 4)])
def test_compiled_and_in_autocast(norm, shape):
    head = ProjectionHead(8, 6, norm=norm)
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    features = torch.randn(shape)
    torch.testing.assert_close(compiled(features), head(features))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features).dtype in (torch.bfloat16, torch.float32)
        assert torch.isfinite(head(features.bfloat16()).float()).all()


def test_a_state_has_the_same_names_with_every_normalization():
    states = [ProjectionHead(8, norm=norm).state_dict() for norm in ("batch", "layer", None)]
    convolutions = {"layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"}
    assert all(convolutions <= set(state) for state in states)


@pytest.mark.parametrize("norm", ["instance", True, 1, torch.nn.BatchNorm1d])
def test_an_unknown_normalization_is_refused(norm):
    with pytest.raises(ValueError, match=r"norm: expected 'batch', 'layer' or None"):
        ProjectionHead(8, norm=norm)
