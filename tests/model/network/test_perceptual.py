import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from model.network import fused, perceptual
from model.network.perceptual import WeightsUnavailableError, perceptual_network


def _vgg_state(name):
    """Weights with torchvision's keys, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    state, index, width_in = {}, 0, 3
    for stage, (depth, width) in enumerate(zip(perceptual._VGG_STAGES[name], perceptual._VGG_WIDTHS, strict=True)):
        index += stage > 0
        for _ in range(depth):
            state[f"features.{index}.weight"] = torch.randn(width, width_in, 3, 3, generator=generator) * 0.05
            state[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.05
            index, width_in = index + 2, width
    return state


@pytest.fixture
def server(tmp_path):
    """A real HTTP server of a folder, for downloads."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = None
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_lite0_gives_three_levels_and_no_gradient_to_its_weights():
    network = perceptual_network("efficientnet_lite0", 64)
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    levels = network(image)
    assert [tuple(level.shape[1:]) for level in levels] == [(16, 32, 32), (24, 16, 16), (40, 8, 8)]
    sum(level.sum() for level in levels).backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_folded_batch_norm_equals_convolution_followed_by_batch_norm():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    state = {"c.weight": conv.weight, **{f"n.{key}": value for key, value in norm.state_dict().items()}}
    folded = perceptual._fold_batch_norm(state, "c", "n", 2)
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(image), norm.eval()(conv(image)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusable", [True, False])
def test_features_equal_the_activations_of_plain_layers(fusable, monkeypatch):
    if not fusable:  # as on a machine whose torch lacks the operator
        monkeypatch.setattr(fused, "_CONVOLVE", None)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = perceptual.feature_network("efficientnet_lite0", 32)
    levels = perceptual._LITE0_FEATURES
    with torch.no_grad():
        plain = perceptual._lite0(perceptual._lite0_file(), "efficientnet_lite0", 64, levels)(image)
        found = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = network(image)
    assert [tuple(level.shape[1:]) for level in found] == [(24, 16, 16), (40, 8, 8), (112, 4, 4)]
    for ours, half, expected in zip(found, narrow, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        assert half.dtype == torch.bfloat16
        assert (half.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg_reads_a_named_file_in_half_precision(name, tmp_path):
    torch.save({key: value.half() for key, value in _vgg_state(name).items()}, tmp_path / "w.pth")
    levels = perceptual_network(name, 32, tmp_path / "w.pth")(torch.rand(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_vgg16_levels_are_the_activations_that_the_release_compares(tmp_path):
    state = _vgg_state("vgg16")
    torch.save(state, tmp_path / "w.pth")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x = ((image + 1) / 2 - mean) / std
    for index in (0, 2):
        x = nn.functional.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
        x = x.relu()
    torch.testing.assert_close(perceptual_network("vgg16", 16, tmp_path / "w.pth")(image)[0], x, atol=1e-4, rtol=1e-4)


def test_download_is_kept_and_checked_against_the_name(server, tmp_path, monkeypatch):
    folder, address = server
    torch.save(_vgg_state("vgg16"), folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    served = folder / f"vgg16-{digest[:8]}.pth"
    (folder / "w.pth").rename(served)
    monkeypatch.setitem(perceptual.VGG_URLS, "vgg16", f"{address}/{served.name}")
    monkeypatch.setenv("PPL_WEIGHTS_CACHE", str(tmp_path / "cache"))
    perceptual_network("vgg16", 32)
    served.unlink()
    perceptual_network("vgg16", 32)  # from the cache
    with (tmp_path / "cache" / served.name).open("ab") as cached:
        cached.write(b"damage")
    with pytest.raises(WeightsUnavailableError, match="it is damaged"):
        perceptual_network("vgg16", 32)


def test_wrong_checksum_leaves_nothing_in_the_cache(server, tmp_path, monkeypatch):
    folder, address = server
    torch.save(_vgg_state("vgg16"), folder / "vgg16-00000000.pth")
    monkeypatch.setitem(perceptual.VGG_URLS, "vgg16", f"{address}/vgg16-00000000.pth")
    monkeypatch.setenv("PPL_WEIGHTS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsUnavailableError, match="could not be downloaded"):
        perceptual_network("vgg16", 32)
    assert list((tmp_path / "cache").iterdir()) == []


def test_unreachable_server_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(perceptual.VGG_URLS, "vgg19", "http://127.0.0.1:9/vgg19-dcbb9e9d.pth")
    monkeypatch.setenv("PPL_WEIGHTS_CACHE", str(tmp_path))
    with pytest.raises(WeightsUnavailableError, match=r"PPL_PERCEPTUAL_WEIGHTS.*efficientnet_lite0"):
        perceptual_network("vgg19", 32)


@pytest.mark.parametrize(
    ("state", "says"),
    [({"classifier.weight": torch.ones(1)}, "have no 'features.0.weight'"), ([1, 2], "expected the state dict")],
)
def test_file_of_something_else_is_refused(tmp_path, state, says):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsUnavailableError, match=says):
        perceptual_network("vgg16", 32, tmp_path / "w.pth")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsUnavailableError, match="can't be read"):
        perceptual_network("vgg16", 32, tmp_path / "absent.pth")


@pytest.mark.parametrize(("kernel", "side"), [(3, 16), (5, 12), (3, 7)])
def test_strided_depthwise_convolution_has_the_same_gradient_in_bf16_as_in_fp32(kernel, side):
    conv = nn.Conv2d(6, 6, kernel, stride=2, padding=kernel // 2, groups=6).requires_grad_(False)
    image = torch.randn(2, 6, side, side, requires_grad=True)
    exact = conv(image)
    towards = torch.randn_like(exact)
    (expected,) = torch.autograd.grad(exact, image, towards)
    narrow = image.detach().bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    found = perceptual._StridedDepthwise(conv)(narrow)
    (gradient,) = torch.autograd.grad(found, narrow, towards.bfloat16())
    assert found.dtype == gradient.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0.03)
    torch.testing.assert_close(gradient.float(), expected, atol=0.03, rtol=0.03)
