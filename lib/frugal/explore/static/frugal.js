// Draws Frugal's explorers. The same file runs in JupyterLab (imported by loader.js) and in the static edition
// (a classic script, so that pages work from disk). All numbers come from the payload, which Python computed.
// Every text from outside goes in as textContent.
Object.assign(globalThis.frugal, (() => {
  "use strict";
  const { reader, plain, tableOf, csvOf } = globalThis.frugal; // figure.js
  const TABLE_ROWS = 500; // shown in the page; the CSV has them all
  const KEYBOARD = ["input", "select", "textarea", "button", "summary"];
  let counter = 0;

  // ---- look ----------------------------------------------------------------------------------------------------
  function addStyle(text, version) {
    const id = `frugal-style-${version}`;
    if (document.getElementById(id)) return;
    const style = document.createElement("style");
    style.id = id;
    style.textContent = text;
    document.head.append(style);
  }

  // The figure takes its ink from the page, so that light and dark themes both work.
  function themed(layout, template, ink) {
    const out = structuredClone(layout);
    const look = structuredClone(template ?? { layout: {} });
    const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    probe.fillStyle = ink; // the canvas turns any CSS colour into numbers
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b, alpha] = probe.getImageData(0, 0, 1, 1).data;
    const shade = (strength) => `rgba(${r},${g},${b},${((strength * alpha) / 255).toFixed(3)})`;
    look.layout.font = { ...look.layout.font, color: shade(1) };
    look.layout.modebar = { ...look.layout.modebar, color: shade(0.35), activecolor: shade(0.8) };
    for (const axis of ["xaxis", "yaxis"]) {
      look.layout[axis] = { ...look.layout[axis], gridcolor: shade(0.14), linecolor: shade(0.5),
        tickcolor: shade(0.5) };
    }
    out.template = look;
    out.autosize = true;
    out.height ??= 400;
    out.uirevision ??= "kept"; // a zoom stays while a slider moves
    return out;
  }

  function node(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    // JupyterLab takes arrow keys for itself, unless the very element that has the focus carries this.
    if (KEYBOARD.includes(tag) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
    element.append(...children);
    return element;
  }

  // ---- controls ------------------------------------------------------------------------------------------------
  // A native range over the places of the grid, or a native list; both know their name, value text and keyboard.
  function controlFor(control, index, id, changed) {
    const withUnit = (i) => (control.unit ? `${control.texts[i]} ${control.unit}` : control.texts[i]);
    const label = node("label", { for: id, text: control.label });
    const last = control.values.length - 1;
    let input, readout, show;
    if (control.kind === "slider") {
      input = node("input", { id, type: "range", min: 0, max: last, step: 1, name: control.name });
      readout = node("output", { for: id });
      const track = node("span", { class: "frugal-track" }, input,
        node("span", { class: "frugal-ends", "aria-hidden": "true" },
          node("span", { text: control.texts[0] }), node("span", { text: control.texts[last] })));
      input.addEventListener("input", () => changed(Number(input.value)));
      show = (i) => {
        input.value = i;
        input.setAttribute("aria-valuetext", withUnit(i));
        readout.textContent = withUnit(i);
      };
      label.className = "frugal-label";
      show(index);
      return { element: node("div", { class: "frugal-control" }, label, track, readout), input, show };
    }
    input = node("select", { id, name: control.name });
    control.texts.forEach((text, i) => input.append(node("option", { value: i, text })));
    input.addEventListener("change", () => changed(input.selectedIndex));
    show = (i) => (input.selectedIndex = i);
    label.className = "frugal-label";
    show(index);
    const unit = node("span", { class: "frugal-unit", text: control.unit });
    return { element: node("div", { class: "frugal-control" }, label, node("span", { class: "frugal-track" }, input), unit), input, show };
  }

  function save(name, blobOrUrl) {
    const url = typeof blobOrUrl === "string" ? blobOrUrl : URL.createObjectURL(blobOrUrl);
    const link = node("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    if (typeof blobOrUrl !== "string") setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  // ---- one explorer --------------------------------------------------------------------------------------------
  function mount(element, payload, { plotly = globalThis.Plotly, live = null } = {}) {
    const id = `frugal-${++counter}`;
    let read = reader(payload);
    let indices = payload.controls.map((control) => control.initial);
    let current = null;
    let alive = true;
    let drawing = null;
    let again = false;

    element.classList.add("frugal-explorer");
    const plot = node("div", { class: "frugal-plot", role: "img" });
    const missing = node("p", { class: "frugal-missing", hidden: "" });
    const note = node("p", { class: "frugal-note", hidden: "" });
    const spoken = node("p", { class: "frugal-spoken", "aria-live": "polite" });
    const tableBox = node("div", { class: "frugal-table", tabindex: 0, role: "region", "aria-label": "Data of the figure" });
    const details = node("details", { class: "frugal-data", ontoggle: () => showTable() },
      node("summary", { text: "Data as a table" }), tableBox);
    const buttons = ["PNG", "SVG", "CSV", "JSON"].map((kind) =>
      node("button", { type: "button", text: kind, "aria-label": `Save as ${kind}`, onclick: () => download(kind.toLowerCase()) }));
    const tools = node("div", { class: "frugal-tools" }, details, node("span", { class: "frugal-save" }, node("span", { text: "Save", "aria-hidden": "true" }), ...buttons));
    const controls = payload.controls.map((control, i) =>
      controlFor(control, indices[i], `${id}-${control.name}`, (index) => choose(i, index)));
    const panel = node("div", { class: "frugal-controls" }, ...controls.map((c) => c.element));
    const root = node("div", { class: "frugal-root", role: "group" }, live ?? "", panel, plot, missing, note, spoken, tools);
    panel.hidden = controls.length === 0;
    if (payload.live && !live) root.prepend(node("p", { class: "frugal-live-note", text: payload.live }));
    element.replaceChildren(root);

    function choose(control, index) {
      if (index === indices[control]) return drawing ?? Promise.resolve();
      indices[control] = index;
      controls[control].show(index);
      return draw();
    }

    function ink() {
      return getComputedStyle(root).color;
    }

    // One drawing at a time; changes that come meanwhile are drawn together, the last one wins.
    function draw() {
      again = true;
      drawing ??= (async () => {
        try {
          while (again && alive) {
            again = false;
            await drawNow();
          }
        } finally {
          drawing = null;
        }
      })();
      return drawing;
    }

    async function drawNow() {
      current = read(indices);
      element.dataset.digest = payload.digest;
      missing.hidden = !current.missing;
      plot.hidden = Boolean(current.missing);
      note.hidden = !current.note;
      note.textContent = current.note ?? "";
      missing.textContent = current.missing ? `Nothing recorded here: ${current.missing}` : "";
      if (!current.missing) {
        plot.setAttribute("aria-label", current.summary);
        root.setAttribute("aria-label", plain(current.layout.title?.text ?? "Explorer"));
        await plotly.react(plot, current.data, themed(current.layout, payload.template, ink()), {
          responsive: true, displaylogo: false, showSendToCloud: false, showEditInChartStudio: false,
          modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"],
        });
      }
      clearTimeout(spoken.timer);
      spoken.timer = setTimeout(() => (spoken.textContent = current.missing ? missing.textContent : current.summary), 400);
      showTable();
    }

    function showTable() {
      if (!details.open || current.missing) return;
      const { columns, rows } = tableOf(current);
      const head = node("tr", {}, ...columns.map((text) => node("th", { scope: "col", text })));
      const body = rows.slice(0, TABLE_ROWS).map((row) =>
        node("tr", {}, ...row.map((v) => node("td", { text: v === null ? "" : typeof v === "number" ? Number(v.toPrecision(6)) : v }))));
      const table = node("table", {}, node("thead", {}, head), node("tbody", {}, ...body));
      tableBox.replaceChildren(table);
      if (rows.length > TABLE_ROWS) tableBox.append(node("p", { text: `The first ${TABLE_ROWS} of ${rows.length} rows; CSV has them all.` }));
    }

    const choices = () => Object.fromEntries(payload.controls.map((c, i) => [c.name, c.values[indices[i]]]));

    async function download(kind) {
      if (current.missing) return;
      const chosen = payload.controls.map((c, i) => `${c.name}-${c.texts[indices[i]]}`).join("_");
      const name = [payload.name, chosen].filter(Boolean).join("_").replace(/[^\w.-]+/g, "-").slice(0, 80) + "." + kind;
      if (kind === "csv") return save(name, new Blob([csvOf(tableOf(current))], { type: "text/csv" }));
      if (kind === "json") {
        const data = { figure: payload.name, digest: payload.digest, choices: choices(), summary: current.summary, table: tableOf(current), sweep: payload.sweep };
        return save(name, new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
      }
      const layout = { ...themed(current.layout, payload.template, "#222222"), paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff" };
      const size = { width: plot.clientWidth || 800, height: plot.clientHeight || 400 };
      save(name, await plotly.toImage({ data: current.data, layout }, { format: kind, scale: kind === "png" ? 2 : 1, ...size }));
    }

    const watcher = new MutationObserver(() => draw()); // the reader switched between light and dark
    watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "data-theme"] });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => draw();
    dark.addEventListener("change", redraw);

    const handle = {
      ready: draw(),
      idle: () => drawing ?? Promise.resolve(),
      payload: () => payload,
      choices,
      figure: () => ({ data: plot.data, layout: plot.layout }),
      table: () => tableOf(current),
      set: (name, index) => choose(payload.controls.findIndex((c) => c.name === name), index),
      replace(next) { // a live run brought a new picture; its controls are the same
        payload = next;
        read = reader(next);
        return draw();
      },
      destroy() {
        alive = false;
        watcher.disconnect();
        dark.removeEventListener("change", redraw);
        clearTimeout(spoken.timer);
        plotly.purge(plot);
        element.replaceChildren();
        delete element.frugal;
      },
    };
    element.frugal = handle;
    return handle;
  }

  function renderWidget({ model, element, plotly }) {
    const live = model.get("inputs") ? globalThis.frugal.liveForm(model) : null; // static/live.js
    const handle = mount(element, JSON.parse(model.get("payload")), { plotly, live: live?.element });
    const changed = () => handle.replace(JSON.parse(model.get("payload")));
    model.on("change:payload", changed);
    return () => {
      model.off("change:payload", changed);
      live?.destroy();
      handle.destroy();
    };
  }

  function mountAll(scope = document) {
    for (const element of scope.querySelectorAll(".frugal-explorer")) {
      const source = element.querySelector(':scope > script[type="application/json"]');
      if (source) mount(element, JSON.parse(source.textContent));
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => mountAll());
  else mountAll();
  return { mount, mountAll, renderWidget, addStyle, node, controlFor };
})());
