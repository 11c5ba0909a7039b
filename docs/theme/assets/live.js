// The live model's widget: every <div class="live" data-model="..." data-weights="..."> becomes a button that loads the
// two scripts, and then a place to write with the model and to look at what it computes. The model is in model.js.
(function () {
  "use strict";
  const SHOWN = 12; // how many tokens' odds
  const AT_ONCE = 20; // how many tokens "Write 20" writes

  // An element, its attributes (functions listen to an event), and what is in it.
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // A byte as text: printable ASCII as it is, but for the space, which needs a sign to be seen.
  const ESCAPES = { 9: "\\t", 10: "\\n", 13: "\\r", 32: "␣", 92: "\\\\" };
  function label(byte) {
    if (byte in ESCAPES) return ESCAPES[byte];
    return byte > 32 && byte < 127 ? String.fromCharCode(byte) : "\\x" + byte.toString(16).padStart(2, "0");
  }
  const spoken = (byte) => ({ 9: "tab", 10: "new line", 32: "space" }[byte] || label(byte));
  const percent = (p) => (p === 0 ? "0" : p < 0.0005 ? "<0.1" : (100 * p).toFixed(1)) + " %";
  const decimals = (v) => (Math.abs(v) >= 100 ? v.toFixed(1) : v.toFixed(3)).replace("-", "−");

  // A classic script, loaded once however many widgets ask for it.
  const loading = {};
  function load(url) {
    if (!loading[url]) {
      loading[url] = new Promise((done, failed) => {
        document.head.append(make("script", { src: url, load: done, error: () => {
          delete loading[url];
          failed(new Error(`${url} could not be loaded`));
        } }));
      });
    }
    return loading[url];
  }

  function mount(place) {
    if (place.dataset.started) return;
    place.dataset.started = "yes";
    const status = make("span", { role: "status" }, "It runs in this page; nothing that you type leaves it.");
    const button = make("button", { type: "button", class: "live-button live-main", click: start },
      `Load the model${place.dataset.size ? ` (${place.dataset.size})` : ""}`);
    place.append(make("div", { class: "live-start" }, button, status));

    async function start() {
      button.disabled = true;
      status.textContent = "Loading…";
      try {
        await load(place.dataset.model); // first, since the weights are put into what it defines
        await load(place.dataset.weights);
        const model = allformers.decode(allformers.weights);
        place.replaceChildren();
        widget(place, model);
      } catch (error) {
        button.disabled = false;
        status.textContent = `That did not work: ${error.message}.`;
      }
    }
  }

  function widget(place, model) {
    const { context_length: context, num_layers: layers, num_heads: heads, vocab_size: vocab } = model.config;
    let written = []; // the tokens after the prompt
    let pass = null; // of the tokens now: {tokens, slid, logits, activations, milliseconds}
    let writing = 0; // tokens still to be written
    let head = 0, query = 0, key = 0;

    // Prompt, buttons, text.
    const action = (text, click, main) =>
      make("button", { type: "button", class: "live-button" + (main ? " live-main" : ""), click }, text);
    const prompt = make("textarea", { rows: 2, spellcheck: "false", input: later(restart, 150) });
    prompt.value = "The for statement is used to iterate";
    const next = action("Next token", () => append(drawn()), true);
    const many = action(`Write ${AT_ONCE}`, () => (writing ? stop() : write()));
    const back = action("Back", () => { stop(); written.pop(); run(); });
    const again = action("Start again", restart);
    const promptText = make("span"), writtenText = make("b");
    const text = make("div", { class: "live-text", "aria-live": "polite", "aria-label": "Text so far", role: "group" },
      promptText, writtenText);
    const timeLine = make("p", { class: "live-note" }), slidLine = make("p", { class: "live-note" });

    // Settings.
    function slider(name, min, max, step, value, show) {
      const shown = make("b", { "aria-hidden": "true" });
      const input = make("input", { type: "range", min, max, step, value, "aria-label": name, input: update });
      function update() {
        shown.textContent = show(Number(input.value));
        input.setAttribute("aria-valuetext", shown.textContent);
        if (pass) showOdds();
      }
      update();
      return { value: () => Number(input.value), element: make("label", { class: "live-setting" },
        make("span", { class: "live-row" }, make("span", { class: "live-label" }, name), shown), input) };
    }
    const temperature = slider("Temperature", 0, 2, 0.05, 0.8, (v) => (v === 0 ? "0, the likeliest" : v.toFixed(2)));
    const topK = slider("Top-k", 1, vocab, 1, vocab, (v) => (v === vocab ? "off" : String(v)));
    const topP = slider("Top-p", 0.05, 1, 0.05, 1, (v) => (v === 1 ? "off" : v.toFixed(2)));
    const seed = make("input", { type: "number", min: 0, max: 4294967295, step: 1, value: 1 });

    // Odds, attention, and the table of all tensors.
    const odds = make("ol", { class: "live-odds" });
    const layer = make("select", { change: showAttention });
    for (let i = 0; i < layers; i++) layer.append(make("option", { value: i }, `Layer ${i}`));
    const small = Array.from({ length: heads }, (_, number) => {
      const canvas = make("canvas", { role: "img" });
      const press = make("button", { type: "button", class: "live-head", click: () => { head = number; showAttention(); } },
        canvas, make("span", {}, `Head ${number}`));
      return { canvas, press };
    });
    const large = make("canvas", { role: "img" });
    const readout = make("p", { class: "live-readout", "aria-live": "off" });
    const map = make("div", { class: "live-map", role: "application", tabindex: 0, keydown: steer,
      "aria-label": "Attention weights, one cell for each query and key. Arrow keys choose a cell.",
      focus: () => readout.setAttribute("aria-live", "polite"), blur: () => readout.setAttribute("aria-live", "off"),
      click: (event) => { [query, key] = cellUnder(event); showQuery(); },
      pointermove: (event) => { const cell = cellUnder(event); drawLarge(cell); tell(cell); },
      pointerleave: () => { drawLarge(); tell(); } }, large);
    const queries = make("select", { change: () => { query = Number(queries.value); key = heaviest(); showQuery(); } });
    const caption = make("caption"), rows = make("tbody");
    const tensorRows = make("tbody");
    const fold = make("details", { class: "live-fold", toggle: showTensors },
      make("summary", {}, "Every tensor of this pass"),
      scroll("Every tensor of this pass", make("table", { class: "live-table" },
        heading(["Name", "Axes and sizes", "Mean", "Spread", "Min", "Max"], 2), tensorRows)),
      make("p", { class: "live-note" }, "In the order of computing, by the names that allformers.inspection.capture gives. " +
        "Spread is the standard deviation. Masked scores are left out of the numbers."));

    const column = (name, ...content) => make("div", {}, make("div", { class: "live-title" }, name), ...content);
    place.append(make("div", { class: "live-panel", role: "group", "aria-label": "Live model" },
      make("label", { class: "live-label" }, "Prompt", prompt),
      make("div", { class: "live-buttons" }, next, many, back, again),
      text, timeLine, slidLine,
      make("div", { class: "live-part live-columns" },
        column("Settings", temperature.element, topK.element, topP.element, make("label", { class: "live-label" }, "Seed", seed),
          make("p", { class: "live-note" }, "The same seed and settings write the same text.")),
        column("The next token",
          make("div", { class: "live-odds-head", "aria-hidden": "true" },
            make("span", {}, "Token"), make("span"), make("span", {}, "Model"), make("span", {}, "Settings")),
          odds,
          make("p", { class: "live-note" }, make("i", { class: "live-key" }), "as the model gives it, ",
            make("i", { class: "live-key live-after" }), "after the settings. Choose a token to append it. ␣ is a space."))),
      make("div", { class: "live-part" },
        make("div", { class: "live-title" }, "Attention"),
        make("div", { class: "live-choices" }, make("label", { class: "live-label" }, "Layer", layer)),
        make("div", { class: "live-heads", role: "group", "aria-label": "Heads of the layer" }, ...small.map((one) => one.press)),
        make("div", { class: "live-columns live-look" },
          make("div", {}, map,
            make("div", { class: "live-scale" }, make("i", { "aria-hidden": "true" }),
              make("span", {}, "weight 0"), make("span", {}, "0.25"), make("span", {}, "1")),
            make("p", { class: "live-note" }, "Each row is a query token, each column a key token. Empty cells are masked: " +
              "they come later.")),
          make("div", {}, readout, make("label", { class: "live-label" }, "Query token", queries),
            scroll("Weights of the query token", make("table", { class: "live-table" }, caption,
              heading(["Place", "Key token", "Weight"], 2), rows))))),
      fold));

    const encode = () => Array.from(new TextEncoder().encode(prompt.value));
    const decodeText = (bytes) => new TextDecoder().decode(Uint8Array.from(bytes));
    const settings = () => ({
      temperature: temperature.value(),
      topK: topK.value() === vocab ? null : topK.value(),
      topP: topP.value() === 1 ? null : topP.value(),
    });
    const lastLogits = () => pass.logits.values.subarray(-vocab);
    const values = (name) => pass.activations[`blocks.${layer.value}.attention.${name}`].values;
    const weight = (q, k, h = head) => values("weights")[(h * pass.tokens.length + q) * pass.tokens.length + k];

    // Compute what the text so far gives, and show it.
    function run() {
      const start = encode(), all = [...start, ...written], tokens = all.slice(-context);
      promptText.textContent = decodeText(start);
      writtenText.textContent = decodeText(written);
      back.disabled = again.disabled = written.length === 0;
      next.disabled = many.disabled = all.length === 0;
      if (all.length === 0) {
        stop();
        timeLine.textContent = "Type a prompt of at least one character.";
        return;
      }
      const began = performance.now();
      pass = { tokens, slid: all.length - tokens.length, ...allformers.forward(model, tokens) };
      pass.milliseconds = performance.now() - began;
      timeLine.textContent = `${tokens.length} token${tokens.length === 1 ? "" : "s"}, ${Math.round(pass.milliseconds)} ms`;
      slidLine.textContent = pass.slid === 0 ? "" :
        `The model reads ${context} tokens at most: the first ${pass.slid} of ${all.length} have slid out.`;
      slidLine.hidden = pass.slid === 0;
      query = tokens.length - 1;
      queries.replaceChildren(...tokens.map((byte, place) => make("option", { value: place }, `${place}: ${label(byte)}`)));
      showOdds();
      showAttention();
      showTensors();
    }

    // The n-th token is drawn with the seed's n-th number, so that Back and Next token lead to the same text.
    function drawn() {
      const random = allformers.random(Number(seed.value));
      for (let i = 0; i < written.length; i++) random();
      return allformers.draw(allformers.distribution(lastLogits(), settings()), random());
    }
    function append(token) {
      written.push(token);
      run();
    }
    function restart() {
      stop();
      written = [];
      run();
    }
    function write() {
      writing = AT_ONCE;
      many.textContent = "Stop";
      text.setAttribute("aria-busy", "true"); // read out once, when all is written
      const step = () => {
        if (!writing) return;
        append(drawn());
        if (--writing) setTimeout(step); // lets the page draw in between
        else stop();
      };
      step();
    }
    function stop() {
      writing = 0;
      many.textContent = `Write ${AT_ONCE}`;
      text.removeAttribute("aria-busy");
    }

    function showOdds() {
      const raw = allformers.softmax(lastLogits(), vocab), after = allformers.distribution(lastLogits(), settings());
      const order = Array.from(raw.keys()).sort((a, b) => raw[b] - raw[a] || a - b).slice(0, SHOWN);
      const longest = Math.max(...order.map((id) => Math.max(raw[id], after[id])));
      const bar = (p) => make("i", { style: `width: ${(100 * p) / longest}%`, class: p === 0 ? "live-none" : null });
      const focused = Array.from(odds.children).findIndex((row) => row.contains(document.activeElement));
      odds.replaceChildren(...order.map((id) => make("li", {},
        make("button", { type: "button", class: "live-token", click: () => { stop(); append(id); } },
          make("code", { "aria-hidden": "true" }, label(id)),
          make("span", { class: "live-bars" }, make("span", { class: "live-hidden" }, `Append ${spoken(id)}: `), bar(raw[id]), bar(after[id])),
          make("span", {}, make("span", { class: "live-hidden" }, "model "), percent(raw[id])),
          make("span", {}, make("span", { class: "live-hidden" }, ", with the settings "), percent(after[id]))))));
      if (focused >= 0) odds.children[focused].firstChild.focus(); // the row under the reader's hand has been replaced
    }

    // A colour of the style sheet as red, green and blue.
    function colour(name) {
      const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
      pen.fillStyle = getComputedStyle(place).getPropertyValue(name).trim();
      pen.fillRect(0, 0, 1, 1);
      return Array.from(pen.getImageData(0, 0, 1, 1).data.slice(0, 3));
    }

    // One head's weights, a dot for each query and key, on a canvas of just that size. Masked ones stay empty. Colour
    // grows with the weight's square root, or else small weights, which most are, would not show.
    function drawHead(canvas, h, low, high) {
      const seq = canvas.width = canvas.height = pass.tokens.length;
      const pen = canvas.getContext("2d"), image = pen.createImageData(seq, seq);
      for (let q = 0; q < seq; q++) {
        for (let k = 0; k <= q; k++) {
          const part = Math.sqrt(weight(q, k, h)), at = 4 * (q * seq + k);
          for (let c = 0; c < 3; c++) image.data[at + c] = low[c] + (high[c] - low[c]) * part;
          image.data[at + 3] = 255;
        }
      }
      pen.putImageData(image, 0, 0);
    }

    function showAttention() {
      const low = colour("--live-code"), high = colour("--live-strong");
      small.forEach(({ canvas, press }, number) => {
        drawHead(canvas, number, low, high);
        canvas.setAttribute("aria-label", `Attention weights of layer ${layer.value}`);
        press.setAttribute("aria-pressed", String(number === head));
      });
      key = heaviest();
      showQuery();
    }

    // The key that the query gives most weight to.
    function heaviest() {
      let best = 0;
      for (let k = 1; k <= query; k++) if (weight(query, k) > weight(query, best)) best = k;
      return best;
    }

    function showQuery() {
      queries.value = String(query);
      caption.textContent = `Query ${query}, layer ${layer.value}, head ${head}`;
      rows.replaceChildren(...pass.tokens.slice(0, query + 1).map((byte, k) => make("tr", {},
        make("th", { scope: "row" }, String(k)),
        make("td", { class: "live-left" }, make("code", {}, label(byte))),
        make("td", {}, weight(query, k).toFixed(4)))));
      drawLarge();
      tell();
    }

    // In words: the weight of a cell.
    function tell([q, k] = [query, key]) {
      const name = (place) => make("code", {}, label(pass.tokens[place]));
      readout.replaceChildren(...(k > q
        ? [`Query ${q} `, name(q), ` may not attend to key ${k} `, name(k), ": it comes later."]
        : [`Query ${q} `, name(q), ` gives key ${k} `, name(k), ` a weight of ${weight(q, k).toFixed(4)}.`]));
    }

    // Where on the large map things are, in CSS pixels: labels above and to the left, then the cells.
    function layout() {
      const width = map.clientWidth || 300, seq = pass.tokens.length;
      const longest = Math.max(...pass.tokens.map((byte) => label(byte).length));
      const size = Math.max(9, Math.min(14, (width / (seq + 2)) * 0.8)), margin = size * 0.62 * longest + 8;
      return { width, seq, size, margin, cell: (width - margin) / seq };
    }
    function cellUnder(event) {
      const { margin, cell, seq } = layout(), box = large.getBoundingClientRect();
      const at = (offset) => Math.max(0, Math.min(seq - 1, Math.floor((offset - margin) / cell)));
      return [at(event.clientY - box.top), at(event.clientX - box.left)];
    }

    function drawLarge([q, k] = [query, key]) {
      const { width, seq, size, margin, cell } = layout(), ratio = window.devicePixelRatio || 1;
      large.width = large.height = Math.round(width * ratio);
      large.setAttribute("aria-label", `Head ${head} of layer ${layer.value}, ${seq} tokens; the table gives the weights.`);
      const pen = large.getContext("2d"), style = getComputedStyle(place), ink = style.getPropertyValue("--live-fg");
      pen.scale(ratio, ratio);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(small[head].canvas, margin, margin, cell * seq, cell * seq);
      pen.font = `${size}px ${style.getPropertyValue("--live-mono")}`;
      pen.textBaseline = "middle";
      pen.textAlign = "right";
      const every = Math.ceil((size + 1) / cell); // where cells are smaller than letters, only each n-th has a label
      pass.tokens.forEach((byte, place) => {
        for (const column of [false, true]) {
          const chosen = place === (column ? k : q);
          if (!chosen && (place % every || (every > 1 && Math.abs(place - (column ? k : q)) < every))) continue;
          const along = margin + (place + 0.5) * cell;
          pen.save();
          pen.translate(column ? along : margin - 4, column ? margin - 4 : along);
          if (column && label(byte).length > 1) pen.rotate(Math.PI / 2);
          else if (column) { pen.textAlign = "center"; pen.textBaseline = "bottom"; }
          pen.fillStyle = chosen ? style.getPropertyValue("--live-strong") : ink;
          if (chosen) pen.font = `bold ${pen.font}`;
          pen.fillText(label(byte), 0, 0);
          pen.restore();
        }
      });
      pen.strokeStyle = ink;
      pen.strokeRect(margin, margin + q * cell, cell * seq, cell); // the query's row
      pen.lineWidth = 2;
      pen.strokeRect(margin + k * cell, margin + q * cell, cell, cell);
    }

    function steer(event) {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const within = (v) => Math.max(0, Math.min(pass.tokens.length - 1, v));
      [query, key] = [within(query + step[0]), within(key + step[1])];
      showQuery();
    }

    function showTensors() {
      if (!fold.open || !pass) return;
      tensorRows.replaceChildren(...Object.entries(pass.activations).map(([name, { axes, shape, values }]) => {
        let count = 0, sum = 0, squares = 0, min = Infinity, max = -Infinity;
        for (const v of values) {
          if (v === allformers.LOWEST) continue;
          count++;
          sum += v;
          squares += v * v;
          if (v < min) min = v;
          if (v > max) max = v;
        }
        const mean = sum / count, spread = Math.sqrt(Math.max(0, squares / count - mean * mean));
        return make("tr", {}, make("th", { scope: "row" }, name),
          make("td", { class: "live-left" }, ...axes.flatMap((axis, i) =>
            [i ? " " : "", ...marked(axis), make("b", {}, ` ${shape[i]}`)])),
          ...[mean, spread, min, max].map((v) => make("td", {}, decimals(v))));
      }));
    }

    // Sizes and colours of canvases are not the style sheet's: draw again when either changes.
    new ResizeObserver(() => { if (pass) drawLarge(); }).observe(map);
    new MutationObserver(() => { if (pass) showAttention(); })
      .observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
    run();
    next.focus({ preventScroll: true }); // the button that loaded all this is gone
  }

  function heading(names, left) {
    return make("thead", {}, make("tr", {}, ...names.map((name, i) =>
      make("th", { scope: "col", class: i < left ? "live-left" : null }, name))));
  }
  // An axis, or several in one: "(heads head_dim)" has two names to light up.
  const marked = (axis) => axis.split(/([a-z_]+)/).filter(Boolean).map((part) =>
    (/[a-z]/.test(part) ? make("span", { class: "ax", "data-ax": part }, part) : part));
  const scroll = (name, table) => make("div", { class: "live-scroll", role: "region", tabindex: 0, "aria-label": name }, table);
  function later(act, milliseconds) {
    let timer = 0;
    return () => { clearTimeout(timer); timer = setTimeout(act, milliseconds); };
  }

  const mountAll = () => document.querySelectorAll(".live[data-model]").forEach(mount);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
  else mountAll();
})();
