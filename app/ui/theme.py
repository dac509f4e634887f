"""The look of the studio: Gradio's theme tokens, the style sheet and the head of every page."""

from __future__ import annotations

import gradio as gr

from core.figures.style import SERIES, diverging, ramp
from core.home import ASSETS

HEAT_STEPS = 33

HEAD = """<script>
%s
</script>"""


def asset(name: str) -> str:
    return (ASSETS / "ui" / name).read_text("utf-8")


def head() -> str:
    return HEAD % "\n".join(map(asset, ("session.js", "save.js", "upload.js")))


def css() -> str:
    """The style sheet, with the heat scale of the figures as variables: one scale on pages and in files."""
    scales = "".join(
        f"{selector} {{ {''.join(f'--{name}-{i}:{c};' for i, c in enumerate(scale(theme, HEAT_STEPS)))} }}\n"
        for selector, theme in ((":root", "light"), (".dark", "dark"))
        for name, scale in (("heat", ramp), ("diverge", diverging))
    )
    experts = ":root { " + "".join(f"--expert-{i}:{colour};" for i, colour in enumerate(SERIES)) + " }\n"
    return scales + experts + _sheets()


def _sheets() -> str:
    """The shared style sheet, then those of single pages."""
    own = sorted(path.name for path in (ASSETS / "ui").glob("*.css") if path.name != "tessera.css")
    return "\n".join(map(asset, ("tessera.css", *own)))


def theme() -> gr.themes.Base:
    """Paper and ink by day, slate by night. Both fonts ship with Gradio, whole in these two weights only."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=[gr.themes.GoogleFont("Source Sans Pro", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[gr.themes.GoogleFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
    ).set(
        **_pairs(
            body_background_fill=("#f6f6f2", "#10151b"),
            background_fill_primary=("#ffffff", "#171e26"),
            background_fill_secondary=("#f0f0ea", "#1c242e"),
            block_background_fill=("#ffffff", "#171e26"),
            block_border_color=("#e2e2da", "#27313d"),
            border_color_primary=("#e2e2da", "#27313d"),
            block_label_background_fill=("transparent", "transparent"),
            block_label_text_color=("#5d6b78", "#8fa0b0"),
            block_title_text_color=("#5d6b78", "#8fa0b0"),
            body_text_color=("#1d2733", "#dbe3ea"),
            body_text_color_subdued=("#667482", "#8a99a8"),
            input_background_fill=("#fbfbf8", "#121820"),
            input_border_color=("#dcdcd3", "#2c3744"),
            button_primary_background_fill=("#0f6d7a", "#2a97a5"),
            button_primary_background_fill_hover=("#0b5a65", "#35a9b8"),
            button_primary_text_color=("#ffffff", "#0c1116"),
            button_secondary_background_fill=("#ecece5", "#222c37"),
            button_secondary_border_color=("#dcdcd3", "#2c3744"),
            button_cancel_background_fill=("transparent", "transparent"),
            button_cancel_border_color=("#c2574f", "#d9776f"),
            button_cancel_text_color=("#b3443c", "#e89089"),
            checkbox_background_color_selected=("#0f6d7a", "#2a97a5"),
            checkbox_border_color_selected=("#0f6d7a", "#2a97a5"),
            checkbox_label_background_fill=("transparent", "transparent"),
            checkbox_label_background_fill_selected=("#e3eeec", "#1d3038"),
            border_color_accent=("#0f6d7a", "#37a7b5"),
            slider_color=("#0f6d7a", "#37a7b5"),
            link_text_color=("#0f6d7a", "#56bccb"),
        ),
        color_accent="#0f6d7a",
        block_border_width="1px",
        block_shadow="none",
        block_radius="10px",
        block_label_border_width="0px",
        block_title_text_weight="600",
        block_title_text_size="13px",
        input_shadow="none",
        button_border_width="1px",
        chatbot_text_size="15px",
        button_large_text_size="15px",
        button_large_padding="8px 16px",
        button_large_text_weight="600",
        button_medium_text_size="14px",
        button_medium_padding="7px 14px",
        button_medium_text_weight="600",
    )


def _pairs(**tokens: tuple[str, str]) -> dict[str, str]:
    """Gradio names the dark value of a token ``<token>_dark``."""
    return {
        name + suffix: value for name, pair in tokens.items() for suffix, value in zip(("", "_dark"), pair, strict=True)
    }
