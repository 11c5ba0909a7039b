// What a page can do beyond being read: light up an axis everywhere, change the model's size, walk with keys.
(function () {
  "use strict";
  const all = (selector) => Array.from(document.querySelectorAll(selector));

  function start() {
    axes();
    sizes();
    walk();
    copyButtons();
    openTarget();
    window.addEventListener("hashchange", openTarget);
    window.addEventListener("load", () => setTimeout(mendTheme, 100));
  }

  // What scrolls has to be in reach of keys, and regions have to have names of their own; the theme leaves both open.
  function mendTheme() {
    all(".md-typeset__scrollwrap").forEach((box) => { box.tabIndex = 0; });
    all(".md-nav--secondary .md-nav").forEach((list, number) =>
      list.setAttribute("aria-label", `${list.getAttribute("aria-label")}, list ${number + 1}`));
  }

  // An axis under the pointer, in focus or chosen lights up wherever it is, and a note says what it is.
  function axes() {
    if (!document.querySelector(".ax")) return;
    const note = document.createElement("div");
    note.className = "axis-note";
    note.setAttribute("role", "status");
    (document.querySelector("main") || document.body).append(note);
    const said = (name) => {
      const item = name && document.querySelector(`.walk-legend li[data-axis="${name}"]`);
      if (!item) return "";
      const size = item.querySelector("b");
      return `${name}: ${item.querySelector("span").textContent}${size ? `, ${size.textContent}` : ""}`;
    };
    let lit = "", chosen = "";
    const light = (name) => {
      if (name === lit) return;
      lit = name;
      all(".ax").forEach((axis) => axis.classList.toggle("lit", axis.dataset.ax === name));
      note.textContent = said(name);
    };
    const nameOf = (event) => (event.target.closest && event.target.closest(".ax") || { dataset: {} }).dataset.ax;
    document.addEventListener("mouseover", (event) => light(nameOf(event) || chosen));
    document.addEventListener("focusin", (event) => light(nameOf(event) || chosen));
    document.addEventListener("click", (event) => {
      const name = nameOf(event);
      chosen = !name || name === chosen ? "" : name;
      light(chosen);
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") light(chosen = ""); });
  }

  // One size for the whole page.
  function sizes() {
    const choices = all("select.sizes");
    choices.forEach((choice) => choice.addEventListener("change", () => {
      choices.forEach((other) => { other.value = choice.value; });
      all("[data-sizes]").forEach((cell) => { cell.textContent = JSON.parse(cell.dataset.sizes)[choice.value]; });
    }));
  }

  // Where the reader is; j and k step forward and back; a click on code brings the prose into view.
  function walk() {
    const steps = all(".walk-step");
    if (!steps.length) return;
    const seen = new IntersectionObserver(
      (entries) => entries.forEach((entry) => entry.target.classList.toggle("current", entry.isIntersecting)),
      { rootMargin: "-35% 0px -55% 0px" });
    steps.forEach((step) => seen.observe(step));
    if (window.matchMedia("(max-width: 76.2344em)").matches) all(".walk-legend details").forEach((box) => { box.open = false; });
    const go = (step) => {
      step.scrollIntoView({ block: "start" });
      step.focus({ preventScroll: true });
      history.replaceState(null, "", `#${step.querySelector("h3").id}`);
    };
    steps.forEach((step) => step.querySelector(".walk-code").addEventListener("click", (event) => {
      if (event.target.closest("button, summary, a, details") || String(window.getSelection())) return;
      const top = step.querySelector("h3").getBoundingClientRect().top;
      if (top < 0 || top > window.innerHeight) go(step);
    }));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      if (event.key !== "j" && event.key !== "k") return;
      const middle = window.innerHeight * 0.4;
      const here = steps.findLastIndex((step) => step.getBoundingClientRect().top <= middle);
      go(steps[Math.max(0, Math.min(steps.length - 1, here + (event.key === "j" ? 1 : -1)))]);
    });
  }

  function copyButtons() {
    all(".md-typeset pre > code").forEach((code) => {
      const place = code.parentElement.parentElement, button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "copy";
      button.setAttribute("aria-label", "Copy this code");
      button.addEventListener("click", async () => {
        try { await navigator.clipboard.writeText(code.innerText); button.textContent = "copied"; }
        catch { button.textContent = "not allowed"; }
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      });
      place.classList.add("copied-from");
      place.append(button);
    });
  }

  // A link to something inside a closed box opens it.
  function openTarget() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const box = target && target.closest("details");
    if (box) { box.open = true; target.scrollIntoView(); }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
