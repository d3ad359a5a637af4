"""The public weight files that LPIPS and FID need: where to get them, and how they are read."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from cfld.tools.cli import UserError
from cfld.tools.sums import check_sums
from cfld.tools.tensors import read_tensors

INCEPTIONS = {"fid_pgpis": "inception_v3_google-0cc3c7bd.pth", "fid": "pt_inception-2015-12-05-6726825d.pth"}
ALEXNET = "alexnet-owt-7be5be79.pth"
LPIPS_HEADS = "alex.pth"
FOLDERS = {  # where each file can be downloaded
    ALEXNET: "https://download.pytorch.org/models",
    LPIPS_HEADS: "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1",
    INCEPTIONS["fid_pgpis"]: "https://download.pytorch.org/models",
    INCEPTIONS["fid"]: "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights",
}


def read_public(path: str | Path, file: str) -> dict[str, Tensor]:
    """The tensors of a public file. Raises UserError that says where to download it if it is not there, or if the
    SHA256SUMS beside it lists another one."""
    if not Path(path).is_file():
        command = "python -m cfld.convert fetch metrics"
        raise UserError(f"{path}: no such file; it must be {file}: {command}, or download {FOLDERS[file]}/{file}")
    check_sums(path)
    return read_tensors(path)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, file: str) -> None:
    """Put the tensors of a public file into a module, all of them and no others but counters of batch norms, and freeze
    it. Raises UserError."""
    wanted, found = (
        {name: tuple(x.shape) for name, x in state.items() if not name.endswith("num_batches_tracked")}
        for state in (module.state_dict(), tensors)
    )
    wrong = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    if wrong:
        first = f"{wrong[0]} must be {wanted.get(wrong[0], 'absent')}, found {found.get(wrong[0], 'nothing')}"
        raise UserError(
            f"{path} must be {file}: {len(wrong)} tensors differ ({first}); download {FOLDERS[file]}/{file}"
        )
    module.load_state_dict(tensors, strict=False)
    module.requires_grad_(False).eval()
