"""What every page shows first, for tests and measurements that open them all."""

from __future__ import annotations

from typing import NamedTuple

# Adds up how far things move by themselves, and remembers what moved.
SHIFTS = """window.shifted = 0; window.movers = [];
const box = r => `${Math.round(r.x)},${Math.round(r.y)} ${Math.round(r.width)}x${Math.round(r.height)}`;
const name = node => {
  const element = node?.nodeType === 1 ? node : node?.parentElement;
  return `${element?.tagName}.${element?.className} in #${element?.closest('[id]:not([id^=component])')?.id}`;
};
new PerformanceObserver(list => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) {
    window.shifted += one.value;
    window.movers.push(...(one.sources || []).map(source => `${one.value.toFixed(3)}, ${Math.round(one.startTime)} ms: `
      + `${name(source.node)}: ${box(source.previousRect)} to ${box(source.currentRect)}`));
  }
}).observe({ type: 'layout-shift', buffered: true });"""


class View(NamedTuple):
    """A page's path, and what it shows with nothing in the studio and with 300 finished runs."""

    path: str
    empty: str
    full: str


VIEWS = {
    "Home": View("/", "#run-demo", "#home-runs tbody tr"),
    "Data": View("/data", "#stored .empty, #stored :text('Nothing')", "#stored a[href*='dataset=']"),
    "Methods": View("/methods", "#methods-list a", "#method-head h2"),
    "Experiment": View("/experiment", "#told .empty a", "#told .note"),
    "Runs": View("/runs", ".empty a:visible", ".runline"),
    "Compare": View("/compare", ".empty a:visible", ".empty a[href*='runs=']"),
    "Fusion": View("/fusion", ".empty a:visible", "#fusion-runs .pickline"),
    "Routing": View("/routing", ".empty a:visible", "#routing-told .empty a"),
    "Chat": View("/chat", ".empty a:visible", "#chat-pane-1 header"),
    "Account": View("/account", "#account-who", "#account-who"),
}
