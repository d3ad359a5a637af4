"""Try a model in the browser: drop a photo, drag the joints, watch the picture form.

    python -m cfld.playground                            the bundled model
    python -m cfld.playground --model DIR --port 8000    another model, another port

If the model folder has a student (turbo.safetensors), the page paints with it, and with the model to refine a picture.
The page is served to this machine only. docs/playground.md shows it.
"""

import sys
from pathlib import Path

from cfld.folder import TURBO_FILE, bundled, load_student
from cfld.playground.server import PlaygroundServer, listen
from cfld.sample import add_model_options, load_asked
from cfld.tools.cli import UserError, command, command_parser


@command
def main(argv: list[str] | None = None) -> None:
    parser = command_parser("cfld.playground", __doc__)
    add_model_options(parser)
    parser.add_argument("--port", type=int, default=8765, help="port of 127.0.0.1; 0 for any free one")
    options = parser.parse_args(argv)
    if options.port and not 1024 <= options.port < 65536:
        raise UserError(f"--port must be 0 or within 1024 .. 65535, found {options.port}")
    with listen(options.port) as listener:  # first, since to load a model can take a minute
        model, vae = load_asked(options)
        folder = Path(options.model) if options.model else bundled()
        student = load_student(folder, model) if (folder / TURBO_FILE).is_file() else None
        with PlaygroundServer(model, vae, listener, student) as server:
            print(f"open http://{server.hosts[0]} in a browser; Ctrl-C ends the playground", flush=True)
            server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
