"""Try a model in the browser: drop a photo, drag the joints, watch the picture form.

    python -m cfld.playground                            the bundled model
    python -m cfld.playground --model DIR --port 8000    another model, another port

The page is served to this machine only. docs/playground.md shows it.
"""

import sys

from cfld.folder import load
from cfld.playground.server import PlaygroundServer
from cfld.tools.cli import DEVICE_HELP, PRECISIONS, UserError, command, command_parser, pick_device


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.playground", __doc__)
    parser.add_argument("--model", metavar="DIR", help="model folder (default: the bundled tiny model)")
    parser.add_argument("--port", type=int, default=8765, help="port of 127.0.0.1; 0 for any free one")
    parser.add_argument("--device", help=DEVICE_HELP)
    options = parser.parse_args(argv)
    if options.port and not 1024 <= options.port < 65536:
        raise UserError(f"--port must be 0 or within 1024 .. 65535, found {options.port}")
    device = pick_device(options.device)
    precision = PRECISIONS["bf16" if device.type == "cuda" else "fp32"]
    model, vae = load(options.model, device, precision, channels_last=True)
    with PlaygroundServer(model, vae, options.port) as server:
        print(f"open http://{server.hosts[0]} in a browser; Ctrl-C ends the playground", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
