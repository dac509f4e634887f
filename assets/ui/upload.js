// How far an upload is: Gradio tells it as the width of a bar alone.
(() => {
  let began = 0;
  let before = 0;
  const span = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);
  const root = document.documentElement;
  new MutationObserver(() => {
    const share = parseFloat(root.style.getPropertyValue("--upload-progress-width")) || 0;
    if (share === 0 || share < before) began = performance.now();
    before = share;
    const passed = (performance.now() - began) / 1000;
    const left = passed > 2 && share > 0 && share < 100 ? `, about ${span(passed * (100 / share - 1))} left` : "";
    const said = share >= 100 ? "sent, being put away" : `${Math.floor(share)}% sent${left}`;
    document.querySelectorAll(".uploading").forEach((one) => { one.dataset.share = said; });
  }).observe(root, { attributes: true, attributeFilter: ["style"] });
})();
