// What a page with a walk can do beyond being read: light up an axis everywhere, change the model's size, step with keys.
(function () {
  "use strict";
  function start() {
    const walk = document.querySelector(".walk");
    if (!walk || walk.dataset.started) return;
    walk.dataset.started = "yes";

    // An axis under the pointer or in focus lights up wherever it is.
    const light = (name) =>
      document.querySelectorAll(".ax").forEach((axis) => axis.classList.toggle("lit", axis.dataset.ax === name));
    const nameOf = (event) => event.target.closest && event.target.closest(".ax");
    let pinned = "";
    document.addEventListener("mouseover", (event) => { const axis = nameOf(event); light(axis ? axis.dataset.ax : pinned); });
    document.addEventListener("focusin", (event) => { const axis = nameOf(event); if (axis) light(axis.dataset.ax); });
    document.addEventListener("click", (event) => {
      const axis = nameOf(event);
      if (axis) { pinned = pinned === axis.dataset.ax ? "" : axis.dataset.ax; light(pinned); }
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") { pinned = ""; light(""); } });

    // The sizes of another preset.
    const select = walk.querySelector(".walk-sizes");
    const show = (preset) =>
      walk.querySelectorAll("[data-sizes]").forEach((cell) => {
        cell.textContent = JSON.parse(cell.dataset.sizes)[preset];
      });
    select.addEventListener("change", () => show(select.value));

    // Where the reader is; j and k step forward and back.
    const steps = Array.from(walk.querySelectorAll(".walk-step"));
    const seen = new IntersectionObserver(
      (entries) => entries.forEach((entry) => entry.target.classList.toggle("current", entry.isIntersecting)),
      { rootMargin: "-35% 0px -55% 0px" });
    steps.forEach((step) => seen.observe(step));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      if (event.key !== "j" && event.key !== "k") return;
      const middle = window.innerHeight * 0.4;
      const here = steps.findLastIndex((step) => step.getBoundingClientRect().top <= middle);
      const next = steps[Math.max(0, Math.min(steps.length - 1, here + (event.key === "j" ? 1 : -1)))];
      next.scrollIntoView({ block: "start" });
      next.focus({ preventScroll: true });
    });
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
