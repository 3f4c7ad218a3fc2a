"""Texts that would like to be something else than text."""

HOSTILE = {
    "HTML": "Rosebud <script>alert(1)</script><img src=x onerror=alert(1)> &lt;b&gt;",
    "markdown": "Rosebud **bold** [link](javascript:alert(1)) | cell | `code` $x$ ~~gone~~ _so_\n\n# Heading\n- a",
    "markup": "Rosebud [bold]bold[/bold] [/] [link=file:///x]y[/link] :smile:",
    "escapes": "Rosebud \x1b[31mred\x1b[0m \x1b]0;title\x07 \x08\x00 \x9b2J",
    "direction": "Rosebud \u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "separators": "Rosebud \u2028 \u2029 \x85 \x0c \x1e",
    "one word": "Rosebud" + "x" * 100_000,
    "emoji": "Rosebud \U0001f600 e\u0301",
}
HALF = "Rosebud \ud83d"
ESCAPED = "Rosebud \\ud83d"  # what stands for it where it is read: six characters
STEERING = [
    *"\x00\x07\x08\x1b\x7f\x85\x9b\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    HALF[-1],
]
