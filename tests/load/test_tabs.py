"""A tab that is closed leaves nothing behind, and an output that stays as it is costs nothing."""

import gradio as gr
import pytest

from app import sessions
from benchmarks import load_fixture, load_sessions
from benchmarks.load_browser import finished


@pytest.fixture
def pages() -> sessions.Pages:
    with sessions.Pages() as pages:
        name, shown, kept = gr.Textbox(), gr.HTML(), gr.State({})
        name.submit(lambda one: [one, gr.skip(), gr.skip()], name, [shown, name, kept])
    return pages


@pytest.fixture
def holder(pages) -> sessions.Sessions:
    holder = sessions.Sessions()
    holder.set_blocks(pages)
    return holder


def test_of_closed_tabs_the_last_few_are_kept_and_of_open_ones_all(holder):
    for number in range(300):
        holder[f"open-{number}"]
    for number in range(300):
        holder[f"closed-{number}"].is_closed = True
    holder["next"]
    known = set(holder.session_data)
    assert {f"open-{number}" for number in range(300)} < known
    assert {one for one in known if one.startswith("closed")} == {f"closed-{n}" for n in range(250, 300)}
    assert set(holder.time_last_used) == known


def test_a_tab_describes_no_component_that_it_did_not_change(holder):
    assert holder["one"].config_values == {}


def test_what_stays_is_sent_as_such_and_not_built_anew(pages, holder):
    state, fn = holder["one"], pages.fns[0]
    answer = finished(pages.postprocess_data(fn, ["said", gr.skip(), gr.skip()], state))
    assert answer == ["said", gr.skip(), None]
    assert set(state.blocks_config.blocks) == set(pages.default_config.blocks)
    assert all(state.blocks_config.blocks[n] is pages.default_config.blocks[n] for n in pages.default_config.blocks)
    answer = finished(pages.postprocess_data(fn, ["said", gr.update(value="new"), {"a": 1}], state))
    assert answer[1]["value"] == "new" and answer[2] is None and state[fn.outputs[2]._id] == {"a": 1}
    with pytest.raises(ValueError, match="output"):
        finished(pages.postprocess_data(fn, ["too few"], state))


@pytest.mark.long
def test_a_thousand_tabs_leave_the_server_as_it_was(tmp_path):
    load_fixture.build(tmp_path / "home", load_fixture.SMALL)
    curve = load_sessions.opened_and_closed(tmp_path / "home", 1000)
    assert load_sessions.growth(curve) < load_sessions.GROWTH_MIB, curve
