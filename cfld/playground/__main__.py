"""The playground's command."""

import sys

import torch

from cfld.folder import load
from cfld.playground.server import PlaygroundServer
from cfld.tools.cli import PRECISIONS, UserError, command, command_parser, pick_device


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.playground", __doc__)
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a model folder, made by cfld.convert or cfld.train (default: the bundled tiny model)",
    )
    parser.add_argument("--port", type=int, default=8765, help="of 127.0.0.1; 0 takes any that is free")
    parser.add_argument("--device", help="cuda, cpu, ... (default: the best there is)")
    options = parser.parse_args(argv)
    if options.port and not 1024 <= options.port < 65536:
        raise UserError(f"--port must be 0 or within 1024 .. 65535, found {options.port}")
    device = pick_device(options.device)
    model, vae = load(options.model, device, PRECISIONS["bf16" if device.type == "cuda" else "fp32"])
    for module in (model, vae):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with PlaygroundServer(model, vae, options.port) as server:
        print(f"open http://{server.hosts[0]} in a browser; Ctrl-C ends the playground", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
