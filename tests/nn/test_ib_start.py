"""Axes that an information-bottleneck layer starts from."""

import pytest
import torch

from cmibq.errors import ConfigError, DataError
from cmibq.nn.ib_layer import CMIBQConfig, IBQuantizedLayer
from cmibq.nn.ib_start import independent_axes, principal_axes, start_from_


def mixed():
    torch.manual_seed(0)
    sources = torch.rand(400, 4, 3).pow(6)
    mixing = torch.tensor([[1.0, 0.4, 0.1], [0.2, 1.0, 0.3], [0.5, 0.1, 1.0], [0.3, 0.3, 0.3]])
    return sources, sources @ mixing.mT + 2


def test_principal_axes_are_orthonormal_and_have_their_variances():
    _, features = mixed()
    found = principal_axes(features, 3)
    torch.testing.assert_close(found.encoder @ found.decoder, torch.eye(3), atol=1e-5, rtol=0)
    z = (features - found.mean).flatten(0, 1) @ found.encoder.mT
    torch.testing.assert_close(z.var(0, correction=0), found.variance, atol=1e-5, rtol=1e-4)
    assert bool((found.variance[:-1] >= found.variance[1:]).all())


def test_independent_axes_find_the_sources_and_lead_back():
    sources, features = mixed()
    found = independent_axes(features, 3)
    z = (features - found.mean).flatten(0, 1) @ found.encoder.mT
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    back = z @ found.decoder.mT + found.mean
    torch.testing.assert_close(back, features.flatten(0, 1), atol=1e-4, rtol=0)
    match = torch.corrcoef(torch.cat([z, sources.flatten(0, 1)], 1).mT)[:3, 3:].abs()
    assert float(match.amax(1).min()) > 0.98
    assert sorted(match.argmax(1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("axes", ["independent", "principal"])
def test_a_layer_starts_as_the_identity_on_the_axes_it_has(axes):
    _, features = mixed()
    layer = IBQuantizedLayer(CMIBQConfig(feature_dim=4, latent_dim=3, hidden_dim=4))
    assert start_from_(layer, features, axes=axes) is layer
    again = layer.decoder(layer.encoder(features))
    torch.testing.assert_close(again, features, atol=1e-4, rtol=0)


def test_channels_without_variance_stay_finite():
    features = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [2.0, 2.0, 0.0]])
    found = independent_axes(features, 3)
    assert all(bool(part.isfinite().all()) for part in found)


def test_bad_calls_are_refused():
    layer = IBQuantizedLayer(CMIBQConfig(feature_dim=4, hidden_dim=4))
    with pytest.raises(ConfigError, match="axes is 'both'; allowed are 'independent'"):
        start_from_(layer, torch.randn(8, 4), axes="both")
    with pytest.raises(DataError, match="1 features of width 4"):
        start_from_(layer, torch.randn(1, 4))
    with pytest.raises(DataError, match="NaN"):
        start_from_(layer, torch.full((8, 4), torch.nan))
    with pytest.raises(DataError, match="for 9 channels"):
        principal_axes(torch.randn(8, 4), 9)
