"""How the studio looks: Gradio's theme tokens and the studio's own style sheet."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import GoogleFont

STATIC = Path(__file__).resolve().parent / "static"

# Re-applies the choice of light or dark before the first paint; without one the system's setting holds.
HEAD = """
<script>
(() => {
  const choice = localStorage.getItem('tessera-mode');
  const dark = choice ? choice === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.addEventListener('DOMContentLoaded', () => document.body.classList.toggle('dark', dark));
})();
</script>
"""


def asset(name: str) -> str:
    return (STATIC / name).read_text("utf-8")


def tessera_theme() -> gr.themes.Base:
    # IBM Plex is bundled whole with Gradio in 400 and 700, so the pages look the same without a network.
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=[GoogleFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[GoogleFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_sm,
        spacing_size=gr.themes.sizes.spacing_md,
    )
