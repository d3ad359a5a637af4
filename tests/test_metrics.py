"""The metrics against scikit-image, lpips, torchvision and scipy, and where those give nothing to compare with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from references import DATA, relative_error
from torch import Tensor, nn

from cfld.evaluate.inception import Inception, load_inception
from cfld.evaluate.lpips import LPIPS, load_lpips
from cfld.evaluate.metrics import SSIM_PROTOCOLS, FeatureStatistics, fid, psnr, ssim
from cfld.evaluate.weights import ALEXNET, FOLDERS, INCEPTIONS, LPIPS_HEADS
from cfld.tools.cli import UserError
from cfld.tools.tensors import read_tensors, write_tensors

SIZES = [(256, 176), (512, 352)]
PHOTOS = sorted((DATA / "fashion").rglob("*.jpg"))[:2]


def pictures(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Three predictions and their truths (3, 3, H, W): a photo with noise, a pale photo, noise and other noise."""
    g = torch.Generator().manual_seed(0)
    photos = [
        np.asarray(Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)) for path in PHOTOS
    ]
    truths = torch.stack([torch.tensor(photo).permute(2, 0, 1) / 255 for photo in photos])
    noise = torch.rand(4, 3, *size, generator=g)
    noisy = (truths[0] + 0.1 * noise[2] - 0.05).clamp(0, 1)
    return torch.stack([noisy, 0.3 + 0.4 * truths[1], noise[0]]), torch.stack([*truths, noise[1]])


def as_skimage(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("size", SIZES)
def test_psnr_is_skimages(size: tuple[int, int]) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    images, truths = pictures(size)
    reference = [
        peak_signal_noise_ratio(as_skimage(y), as_skimage(x), data_range=1) for x, y in zip(images, truths, strict=True)
    ]
    assert np.abs(psnr(images, truths).numpy() - reference).max() <= 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", SSIM_PROTOCOLS)
def test_ssim_is_skimages(protocol: str, size: tuple[int, int]) -> None:
    from skimage.metrics import structural_similarity

    images, truths = pictures(size)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    reference = []
    for x, y in zip(map(as_skimage, images), map(as_skimage, truths), strict=True):
        options = {"win_size": 51} if protocol == "uniform51" else gaussian
        data_range = x.max() - x.min() if protocol == "gaussian_predicted" else 1
        reference.append(structural_similarity(y, x, data_range=data_range, channel_axis=2, **options))
    ours = ssim(images, truths, protocol).numpy()
    assert np.abs(ours - reference).max() <= 1e-6
    assert ours.std() > 0.1


def test_the_protocols_of_ssim_are_three() -> None:
    images, truths = (x[1:2] for x in pictures(SIZES[0]))
    values = sorted(ssim(images, truths, protocol).item() for protocol in SSIM_PROTOCOLS)
    assert len(values) == 3 and min(np.diff(values)) > 1e-3


def test_equal_pictures_have_ssim_1_and_infinite_psnr_flat_ones_too() -> None:
    truths = pictures(SIZES[0])[1]
    truths[1], truths[2] = 0.0, 0.5
    assert psnr(truths, truths).isinf().all()
    for protocol in SSIM_PROTOCOLS:
        assert (ssim(truths, truths, protocol) - 1).abs().max() <= 1e-9


def test_a_flat_prediction_of_a_photo_has_a_small_finite_ssim() -> None:
    truths = pictures(SIZES[0])[1][:2]
    for protocol in SSIM_PROTOCOLS:
        for value in (0.0, 0.5, 1.0):
            similarity = ssim(torch.full_like(truths, value), truths, protocol)
            assert similarity.isfinite().all() and (similarity > -1e-6).all() and (similarity < 0.9).all()


def test_pictures_of_other_ranges_and_shapes_are_refused() -> None:
    images, truths = pictures(SIZES[0])
    for wrong, word in (
        (2 * images - 1, r"must be floating-point numbers in \[0, 1\], found torch.float32 from -1 "),
        ((255 * images).byte(), "divide bytes by 255"),
        (images * float("nan"), "from nan"),
        (images[:, :, 1:], r"found \(3, 3, 255, 176\) and \(3, 3, 256, 176\)"),
        (images[:, :1], r"must be \(B, 3, H, W\)"),
    ):
        for measure in (psnr, ssim, LPIPS()):
            with pytest.raises(UserError, match=word):
                measure(wrong, truths)
    with pytest.raises(UserError, match="uniform51 needs sides of 51 or more, found 50x176"):
        ssim(images[:, :, :50], truths[:, :, :50], "uniform51")
    with pytest.raises(UserError, match="one of uniform51, gaussian_predicted, gaussian, found wang"):
        ssim(images, truths, "wang")


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Path]:
    """The lpips package's network with random weights, and these in the two public layouts."""
    import lpips

    torch.manual_seed(0)
    reference = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    for name, x in reference.named_parameters():
        x.data = torch.rand(x.shape) if "lin" in name else torch.randn(x.shape) * (1.7 / max(x[0].numel(), 100)) ** 0.5
        assert (x != 0).all()
    folder = tmp_path_factory.mktemp("lpips")
    state = reference.state_dict()
    alexnet = {
        f"features.{layer}.{part}": state[f"net.slice{number}.{layer}.{part}"]
        for number, layer in enumerate((0, 3, 6, 8, 10), start=1)
        for part in ("weight", "bias")
    }
    torch.save({**alexnet, "classifier.1.weight": torch.ones(2, 2)}, folder / "alexnet.pth")
    torch.save({f"lin{i}.model.1.weight": state[f"lin{i}.model.1.weight"] for i in range(5)}, folder / "alex.pth")
    return reference, folder / "alexnet.pth", folder / "alex.pth"


@pytest.mark.parametrize("size", SIZES)
def test_lpips_is_the_packages(size: tuple[int, int], lpips_files: tuple[nn.Module, Path, Path]) -> None:
    images, truths = pictures(size)
    reference, *files = lpips_files
    theirs = reference(images, truths, normalize=True).flatten().detach()
    ours = load_lpips(*files)(images, truths)
    assert theirs.min() > 1e-3
    assert ((ours - theirs) / theirs).abs().max() <= 1e-5


def test_the_lpips_of_equal_pictures_is_0(lpips_files: tuple[nn.Module, Path, Path]) -> None:
    truths = pictures(SIZES[0])[1]
    truths[0] = 0.0
    assert (load_lpips(*lpips_files[1:])(truths, truths) == 0).all()


def test_positions_without_any_feature_count_as_equal() -> None:
    model = LPIPS()
    model.features[0].bias.data -= 100  # its ReLU lets nothing through
    assert (model(*pictures(SIZES[0])) == 0).all()


def test_the_public_file_of_heads_is_read(lpips_files: tuple[nn.Module, Path, Path]) -> None:
    import lpips

    public = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    model = load_lpips(lpips_files[1], public)
    assert all((head >= 0).all() and head.max() > 0.1 for head in model.heads)
    with pytest.raises(
        UserError, match=r"vgg.pth must be alex.pth: 4 tensors differ \(1 must be \(192,\), found \(128,\)"
    ):
        load_lpips(lpips_files[1], public.with_name("vgg.pth"))


def mean_inside(block: nn.Module) -> None:
    """Patch torchvision's block: no zeros in the means around the map."""
    forward = block._forward

    def patched(x: Tensor) -> list[Tensor]:
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return [*forward(x)[:-1], block.branch_pool(pooled)]

    block._forward = patched


def maximum(block: nn.Module) -> None:
    """Patch torchvision's block: a maximum instead of the mean."""
    forward = block._forward
    block._forward = lambda x: [*forward(x)[:-1], block.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))]


def random_inception(classes: int, aux: bool, seed: int) -> nn.Module:
    """torchvision's class with random weights, none of them 0, that keep pictures apart through all layers."""
    from torchvision.models import inception_v3

    g = torch.Generator().manual_seed(seed)
    network = inception_v3(weights=None, num_classes=classes, aux_logits=aux, init_weights=False, transform_input=aux)
    for name, x in {**dict(network.named_parameters()), **dict(network.named_buffers())}.items():
        if x.ndim > 1:
            x.data = torch.randn(x.shape, generator=g) * (1.7 / x[0].numel()) ** 0.5
        elif x.is_floating_point():
            positive = name.endswith(("bn.weight", "var"))
            x.data = 0.2 * torch.randn(x.shape, generator=g).clamp(-3, 3) + positive
            assert (x != 0).all()
    return network.eval()


def url(file: str) -> str:
    return f"{FOLDERS[file]}/{file}"


Files = dict[str, tuple[nn.Module, Path]]


@pytest.fixture(scope="module")
def inceptions(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """For each protocol: a reference with random weights that gives features, and the weights in the public layout."""
    folder = tmp_path_factory.mktemp("inception")
    result = {}
    for protocol, classes in (("fid_pgpis", 1000), ("fid", 1008)):
        network = random_inception(classes, aux=protocol == "fid_pgpis", seed=classes)
        path = folder / f"{protocol}.pth"
        torch.save({k: x for k, x in network.state_dict().items() if protocol == "fid" or "num_batches" not in k}, path)
        network.fc = nn.Identity()
        result[protocol] = (network, path)
    standard = result["fid"][0]
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        mean_inside(getattr(standard, f"Mixed_{name}"))
    maximum(standard.Mixed_7c)
    return result


@pytest.mark.parametrize("protocol", INCEPTIONS)
def test_inception_is_torchvisions_and_the_patched_one_of_fid(protocol: str, inceptions: Files) -> None:
    images = pictures(SIZES[1])[0][:2]  # larger than 299x299: antialiasing would tell
    reference, path = inceptions[protocol]
    resized = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False, antialias=False)
    with torch.no_grad():
        theirs = reference(2 * resized - 1 if protocol == "fid" else resized)
        model, other = load_inception(path, protocol), Inception("fid_pgpis" if protocol == "fid" else "fid")
        other.load_state_dict(model.state_dict())  # it fits, and would be wrong
        ours, wrong = model.train()(images), other(images[:1])  # in train mode it is the same
    assert ours.shape == (2, 2048)
    assert relative_error(ours, theirs) <= 1e-5
    assert relative_error(ours[:1], ours[1:]) > 0.01  # the pictures get through all layers
    assert relative_error(wrong, theirs[:1]) > 0.01


@pytest.mark.parametrize(("given", "wanted"), [("fid", "fid_pgpis"), ("fid_pgpis", "fid")])
def test_the_other_inception_file_is_refused_by_name(given: str, wanted: str, inceptions: Files) -> None:
    with pytest.raises(
        UserError, match=f"{wanted} must have {INCEPTIONS[wanted]}, found {INCEPTIONS[given]}, which is for {given}"
    ):
        load_inception(inceptions[given][1], wanted)


def test_broken_and_missing_weight_files_are_named_with_their_address(
    inceptions: Files, lpips_files: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    shapes = {name: x.shape for name, x in read_tensors(inceptions["fid"][1]).items()}
    whole, broken = {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "broken.pth"
    _, alexnet, heads = lpips_files

    def fails(load: Callable[..., nn.Module], *args: object, words: tuple[str, ...]) -> None:
        with pytest.raises(UserError) as error:
            load(*args)
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)

    torch.save({name: x for name, x in whole.items() if not name.startswith("fc.")}, broken)
    for protocol, file in INCEPTIONS.items():
        fails(load_inception, broken, protocol, words=("broken.pth", "found neither", url(file)))
        fails(load_inception, tmp_path / "no.pth", protocol, words=("no.pth: no such file", url(file)))
    torch.save({name: x for name, x in whole.items() if name != "Mixed_6c.branch7x7_2.bn.running_var"}, broken)
    fails(
        load_inception,
        broken,
        "fid",
        words=("Mixed_6c.branch7x7_2.bn.running_var must be (160,), found nothing", url(INCEPTIONS["fid"])),
    )
    torch.save(whole | {"extra.weight": torch.ones(1)}, broken)
    fails(load_inception, broken, "fid", words=("extra.weight must be absent",))
    broken.write_bytes(inceptions["fid"][1].read_bytes()[:1000])
    fails(load_inception, broken, "fid", words=("not a whole checkpoint",))
    fails(load_lpips, tmp_path / "no.pth", heads, words=("no.pth: no such file", url(ALEXNET)))
    fails(load_lpips, alexnet, tmp_path / "no.pth", words=("no.pth: no such file", url(LPIPS_HEADS)))
    fails(load_lpips, heads, heads, words=("alex.pth must be alexnet-owt-7be5be79.pth", url(ALEXNET)))
    fails(load_lpips, alexnet, alexnet, words=("alexnet.pth must be alex.pth", url(LPIPS_HEADS)))
    fails(Inception, "clean", words=("one of fid_pgpis, fid, found clean",))


def features(count: int, width: int, seed: int) -> Tensor:
    """(N, D) like Inception's: correlated, not negative, of very different variances."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=shared) * torch.linspace(0, -4, width).exp()[:, None]
    return torch.relu(torch.randn(count, width, generator=g) @ mixing + 0.1 * seed)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().mean(dim=0), x.double().T.cov()


def root_trace_of_features(x: Tensor, y: Tensor) -> float:
    """tr (S_1 S_2)^1/2 from the features themselves: the sum of the singular values of X Y^T, exact at any rank."""
    x, y = ((z.double() - z.double().mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    return torch.linalg.svdvals(x @ y.T).sum().item()


@pytest.mark.parametrize("count", [600, 100])
def test_fid_is_scipys_for_more_and_for_fewer_pictures_than_dimensions(count: int) -> None:
    import scipy.linalg

    x, y = features(count, 300, 1), features(count + 50, 300, 2)
    (m1, s1), (m2, s2) = moments(x), moments(y)
    ours = fid(m1, s1, m2, s2)
    base = ((m1 - m2).square().sum() + s1.trace() + s2.trace()).item()
    scipys = base - 2 * np.trace(scipy.linalg.sqrtm(s1.numpy() @ s2.numpy())).real
    exact = base - 2 * root_trace_of_features(x, y)
    assert ours > 0.01 * base
    assert abs(ours - scipys) <= 1e-4 * scipys
    assert abs(ours - exact) <= 1e-6 * exact
    assert abs(fid(m2, s2, m1, s1) - ours) <= 1e-6 * ours


def test_fid_of_independent_features_is_the_sum_over_dimensions() -> None:
    g = torch.Generator().manual_seed(0)
    v1, v2, m1, m2 = torch.rand(4, 64, generator=g, dtype=torch.float64)
    v1[:20] = 0  # dimensions that never change
    exact = ((m1 - m2) ** 2 + (v1.sqrt() - v2.sqrt()) ** 2).sum().item()
    assert abs(fid(m1, v1.diag(), m2, v2.diag()) - exact) <= 1e-6 * exact


@pytest.mark.parametrize("count", [2, 20, 1000])
def test_the_fid_of_identical_sets_is_0(count: int) -> None:
    mean, cov = moments(features(count, 300, 1))
    assert 0 <= fid(mean, cov, mean, cov) <= 1e-5 * cov.trace().item()


def test_the_fid_to_one_picture_over_and_over_is_finite_and_right() -> None:
    (m1, s1), (m2, s2) = moments(features(1, 300, 1).repeat(5, 1)), moments(features(50, 300, 2))
    assert s1.norm() == 0
    exact = ((m1 - m2).square().sum() + s2.trace()).item()
    assert abs(fid(m1, s1, m2, s2) - exact) <= 1e-6 * exact
    assert abs(fid(m2, s2, m1, s1) - exact) <= 1e-6 * exact
    assert fid(m1, s1, m1, s1) == 0


def test_statistics_that_no_fid_can_be_made_of_are_refused() -> None:
    mean, cov = moments(features(50, 10, 1))
    with pytest.raises(UserError, match="equally many features, found 9 and 10"):
        fid(mean[1:], cov[1:, 1:], mean, cov)
    with pytest.raises(UserError, match="no negative eigenvalue"):
        fid(mean, cov - 0.1 * cov.norm() * torch.eye(10), mean, cov)
    statistics = FeatureStatistics(10)
    with pytest.raises(UserError, match="must be finite"):
        statistics.update(mean[None] / 0)
    statistics.update(mean[None])
    with pytest.raises(UserError, match="two images or more, found 1"):
        _ = statistics.covariance


def test_streamed_statistics_are_those_of_the_whole_set_however_it_is_cut() -> None:
    x = features(500, 40, 1) + 1e4  # a sum of squares would lose eight of its digits
    mean, cov = moments(x)
    statistics = FeatureStatistics(40)
    for batch in x.split([1, 7, 0, 300, 42, 150]):
        statistics.update(batch)
    assert statistics.count == 500
    assert relative_error(statistics.mean, mean) <= 1e-14
    assert relative_error(statistics.covariance, cov) <= 1e-12


def test_statistics_come_back_from_a_file_of_their_own_kind_only(tmp_path: Path) -> None:
    statistics, path = FeatureStatistics(40, "fid 256x176"), tmp_path / "real.safetensors"
    statistics.update(features(50, 40, 1))
    statistics.save(path)
    again = FeatureStatistics.read(path, "fid 256x176")
    again.update(features(50, 40, 2))
    statistics.update(features(50, 40, 2))
    assert again.count == statistics.count == 100
    assert torch.equal(again.mean, statistics.mean) and torch.equal(again.covariance, statistics.covariance)
    with pytest.raises(UserError, match='of "fid 512x352", found "fid 256x176"'):
        FeatureStatistics.read(path, "fid 512x352")
    write_tensors(path, {"mean": torch.ones(3)})
    with pytest.raises(UserError, match="must hold feature statistics, found mean"):
        FeatureStatistics.read(path)
