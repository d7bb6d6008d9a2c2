"""Real Wan VAEs drop in: diffusers' own files, the frame rule, the latent statistics."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan

from pusa.models.vae import load_vae


@pytest.fixture
def folder(tmp_path):
    """A Wan VAE of diffusers' class, as small as it goes, saved by diffusers itself."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@torch.no_grad()
def test_a_wan_vae_folder_encodes_and_decodes_by_its_statistics(folder):
    vae, reference = load_vae(folder), AutoencoderKLWan.from_pretrained(folder)
    frames = torch.rand(2, 3, 9, 32, 16) * 2 - 1
    latents = vae.encode(frames)
    assert latents.shape == (2, 16, 3, 4, 2)
    assert (vae.spec.channels, vae.spec.temporal_stride, vae.spec.spatial_stride) == (16, 4, 8)
    raw = reference.encode(frames).latent_dist.mode()
    mean, std = (
        torch.tensor(getattr(reference.config, name)).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    torch.testing.assert_close(latents, (raw - mean) / std, atol=1e-5, rtol=1e-5)
    decoded = vae.decode(latents)
    expected = reference.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)


def test_clips_that_are_not_4k_plus_1_are_refused(folder):
    with pytest.raises(ValueError, match="use 5 or 9"):
        load_vae(folder).encode(torch.zeros(1, 3, 8, 32, 16))


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ValueError, match="'AutoencoderKL' is not known"):
        load_vae(tmp_path)
