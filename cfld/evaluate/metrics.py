"""The metrics of Table 2 (Sec. 4.2), each equal to its public implementation.

    psnr                          mean squared error in decibels
    ssim, "uniform51"             the paper's SSIM: uniform windows of 51x51
    ssim, "gaussian_predicted"    SSIM-256 of the official code: Gaussian windows, the prediction's own data range
    ssim, "gaussian"              the usual SSIM: Gaussian windows, data range 1
    lpips.LPIPS                   AlexNet, version 0.1
    fid, Inception("fid_pgpis")   the paper's FID: features of torchvision's ImageNet network, oddly normalised
    fid, Inception("fid")         the standard FID: features of the network of 2015

Images are (B, 3, H, W) in [0, 1], on any device: the predictions are called images, the ground truth truths.

Letters in shapes: B images of a batch, H, W their sides, N images of a set, D features of each.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cfld.tools.cli import UserError
from cfld.tools.tensors import read_safetensors, write_tensors

SSIM_PROTOCOLS = ("uniform51", "gaussian_predicted", "gaussian")


def check_images(*batches: Tensor) -> None:
    """Raise UserError unless all are (B, 3, H, W) of one shape, in [0, 1]."""
    shapes = [tuple(images.shape) for images in batches]
    if len(set(shapes)) > 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        found = " and ".join(map(str, shapes))
        raise UserError(f"images and truths must be (B, 3, H, W) of one size, found {found}: resize them first")
    for images in batches:
        low, high = (x.item() for x in images.aminmax())
        if not (images.is_floating_point() and 0 <= low <= high <= 1):
            raise UserError(
                f"images must be floating-point numbers in [0, 1], found {images.dtype} from {low:g} to {high:g}: "
                f"divide bytes by 255, map [-1, 1] by (x + 1) / 2"
            )


def double(x: Tensor) -> Tensor:
    """x in float64; on the CPU if its device, MPS, has none."""
    return x.to("cpu" if x.device.type == "mps" else x.device).double()


def psnr(images: Tensor, truths: Tensor) -> Tensor:
    """10 log10(1 / MSE), as skimage.metrics.peak_signal_noise_ratio(data_range=1).

    images, truths (B, 3, H, W) in [0, 1] -> (B,) decibels in float64, inf where they are equal
    """
    check_images(images, truths)
    return -10 * (double(images) - double(truths)).square().mean(dim=(1, 2, 3)).log10()


def ssim_window(protocol: str) -> Tensor:
    """The weights (K,) of a window's rows, and of its columns. Raises UserError for an unknown protocol."""
    if protocol not in SSIM_PROTOCOLS:
        raise UserError(f"the protocol of SSIM must be one of {', '.join(SSIM_PROTOCOLS)}, found {protocol}")
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    weights = torch.ones(51).double() if protocol == "uniform51" else torch.exp(-0.5 * (offsets / 1.5) ** 2)
    return weights / weights.sum()


def window_means(x: Tensor, window: Tensor) -> Tensor:
    """x (..., H, W), window (K,) of sum 1 -> (..., H - K + 1, W - K + 1): the weighted mean of each K x K window that
    lies inside. Two products with banded matrices: in float64 several times as fast as convolutions."""
    bands = []
    for length in x.shape[-2:]:
        last = length - len(window)
        bands.append(torch.stack([F.pad(window, (i, last - i)) for i in range(last + 1)]).to(x))
    return bands[0] @ x @ bands[1].T


def ssim(images: Tensor, truths: Tensor, protocol: str = "uniform51") -> Tensor:
    """Structural similarity (Wang et al. 2004), the mean over windows and channels.

    images, truths (B, 3, H, W) in [0, 1], no side shorter than the window
    protocol, in terms of skimage.metrics.structural_similarity:
        "uniform51"           win_size=51, data_range=1
        "gaussian_predicted"  gaussian_weights=True, sigma=1.5, use_sample_covariance=False (11x11),
                              data_range = max - min of each prediction
        "gaussian"            the same with data_range=1
    -> (B,) in float64, 1 where they are equal
    """
    check_images(images, truths)
    x, y, window = double(images), double(truths), ssim_window(protocol)
    if min(x.shape[-2:]) < len(window):
        raise UserError(f"SSIM {protocol} needs sides of {len(window)} or more, found {x.shape[-2]}x{x.shape[-1]}")
    sample_covariance = 51**2 / (51**2 - 1) if protocol == "uniform51" else 1
    data_range: Tensor | float = 1.0
    if protocol == "gaussian_predicted":  # at least one step of 8 bits: SSIM of a constant prediction would be 0 / 0
        data_range = (x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)).clamp(min=1 / 255)

    mean_x, mean_y, mean_xx, mean_yy, mean_xy = window_means(torch.stack([x, y, x * x, y * y, x * y]), window)
    variances = sample_covariance * ((mean_xx - mean_x**2) + (mean_yy - mean_y**2))
    covariance = sample_covariance * (mean_xy - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class FeatureStatistics:
    """Mean and covariance of N features that come in batches, without keeping them: Chan, Golub and LeVeque's update in
    float64, on the CPU.

    width: D
    label: what the features are of (network, size, resize kernel, ...). Sets of other labels are not read, since
        no number would show the mistake
    """

    def __init__(self, width: int = 2048, label: str = ""):
        self.label = label
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)  # sum over x of (x - mean) (x - mean)^T

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by N - 1 as numpy.cov does."""
        if self.count < 2:
            raise UserError(f"a covariance needs two images or more, found {self.count}: give FID larger sets")
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add features (B, D), all finite."""
        x = features.detach().cpu().double()
        if not x.isfinite().all():
            raise UserError("features must be finite, found NaN or infinity: check the weights and the images")
        if len(x):
            mean, total = x.mean(dim=0), self.count + len(x)
            shift = mean - self.mean
            self.scatter.addr_(shift, shift, alpha=self.count * len(x) / total)
            self.scatter.addmm_((x - mean).T, x - mean)
            self.mean += shift * (len(x) / total)
            self.count = total

    def save(self, path: str | Path) -> None:
        """Write a safetensors file atomically."""
        tensors = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        write_tensors(path, tensors, {"label": self.label})

    @classmethod
    def read(cls, path: str | Path, label: str = "") -> "FeatureStatistics":
        """Read what save() wrote. Raises UserError unless its label is the given one."""
        tensors, metadata = read_safetensors(path)
        if tensors.keys() != {"count", "mean", "scatter"}:
            raise UserError(f"{path}: must hold feature statistics, found {', '.join(sorted(tensors)) or 'nothing'}")
        if (found := metadata.get("label")) != label:
            raise UserError(
                f'{path}: must hold statistics of "{label}", found "{found}": remove it, or keep it elsewhere'
            )
        statistics = cls(len(tensors["mean"]), label)
        statistics.count = int(tensors["count"])
        statistics.mean, statistics.scatter = tensors["mean"], tensors["scatter"]
        return statistics


def trace_of_root(cov1: Tensor, cov2: Tensor) -> float:
    """tr (S_1 S_2)^1/2 of two covariances (D, D) in float64, of any rank.

    With S_1 = L L^T the product has the eigenvalues of the symmetric L^T S_2 L. Where S_1 is not of full rank (fewer
    images than features), rounding lets L exist only after about 1e-16 of its norm is added to the diagonal.
    """
    scale = torch.linalg.matrix_norm(cov1).item()
    for part in (0.0, 1e-16, 1e-15, 1e-14, 1e-13, 1e-12):
        nudge = torch.full((len(cov1),), part * scale + 1e-300, dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(cov1 + nudge.diag())
        if not failed:
            break
    else:
        raise UserError("a covariance must be finite, with no negative eigenvalue: compute the statistics again")
    return torch.linalg.eigvalsh(factor.T @ cov2 @ factor).clamp(min=0).sqrt().sum().item()


def fid(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared Frechet distance of two Gaussians, |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^1/2), at least 0.

    mean1, mean2 (D,), cov1, cov2 (D, D), as FeatureStatistics has them; in float64 on the CPU
    """
    if not (mean1.shape == mean2.shape and cov1.shape == cov2.shape == (len(mean1), len(mean1))):
        raise UserError(f"both sets must have equally many features, found {len(mean1)} and {len(mean2)}")
    m1, s1, m2, s2 = (x.detach().cpu().double() for x in (mean1, cov1, mean2, cov2))
    distance = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * trace_of_root(s1, s2)
    return max(distance.item(), 0.0)
