"""Make the screenshots of an exported page: at 1280 and at 390 pixels, light and dark. Needs Chromium.

python docs/page.py --run tales --prompt "once upon a time" --random-seed 7
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from grimmgen.export.html import to_html
from grimmgen.runs.registry import load_model

ROOT = Path(__file__).parent.parent
SIZES = ((1280, 900), (390, 844))


def main() -> None:
    """Export a model, have the page write a story, and take its picture."""
    sys.path.insert(0, str(ROOT))
    from tests.browser import browser

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="the latest one by default")
    parser.add_argument("--prompt", default="once upon a time")
    parser.add_argument("--random-seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, browser() as chromium:
        path = Path(directory) / "teller.html"
        path.write_bytes(to_html(load_model(options.run).checkpoint.rounded()))
        page = chromium.page()
        page.resize(*SIZES[0])
        page.open(path)
        page.wait("!document.getElementById('write').disabled")
        fields = {"prompt": options.prompt, "random-seed": options.random_seed, "length": 1200}
        for name, value in fields.items():
            page.evaluate(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}")
        page.evaluate("document.getElementById('fresh').checked = false")
        # A few stories first, so that the speed is not that of code that has just been compiled.
        for _ in range(3):
            page.evaluate("document.getElementById('form').requestSubmit()")
            page.wait("document.getElementById('stop').hidden")
        for surprise in (False, True):
            if surprise:
                page.evaluate("document.getElementById('surprisal').click()")
            page.evaluate("document.activeElement.blur()")
            for width, height in SIZES:
                # Coloured, one picture of each size is enough.
                for dark in [width < 500] if surprise else [False, True]:
                    page.resize(width, height, dark)
                    page.evaluate("scrollTo(0, 0)")
                    page.evaluate(
                        "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
                    )
                    name = f"page-{width}-{'dark' if dark else 'light'}{'-surprise' if surprise else ''}.png"
                    Path(__file__).with_name(name).write_bytes(page.screenshot())


if __name__ == "__main__":
    main()
