"""The cells' equations once more, made for speed; each held against the plain ones in `grimmgen.cells`."""
