// Draws Frugal's explorers. The same file runs in JupyterLab (imported by loader.js) and in the static edition
// (a classic script, so that pages work from disk). All numbers come from the payload, which Python computed;
// its format is described in frugal/explore/__init__.py. Every text from outside goes in as textContent.
globalThis.frugal = (() => {
  "use strict";
  const TYPES = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };
  const GRIDS = ["heatmap", "contour", "histogram2d"];
  const TABLE_ROWS = 500; // shown in the page; the CSV has them all
  const KEYBOARD = ["input", "select", "textarea", "button", "summary"];
  let counter = 0;

  // ---- payload -> figure -------------------------------------------------------------------------------------
  function decode(item) {
    if (Array.isArray(item)) return item;
    const bytes = Uint8Array.from(atob(item.bdata), (c) => c.charCodeAt(0));
    const flat = new TYPES[item.dtype](bytes.buffer);
    if (item.shape.length === 1) return flat;
    const [rows, cols] = item.shape;
    return Array.from({ length: rows }, (_, r) => flat.subarray(r * cols, (r + 1) * cols));
  }

  function fill(value, lists) {
    if (Array.isArray(value)) return value.map((item) => fill(item, lists));
    if (value === null || typeof value !== "object") return value;
    if ("$" in value) return lists(value.$);
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fill(item, lists)]));
  }

  function reader(payload) {
    const cache = new Map();
    const lists = (place) => {
      if (!cache.has(place)) cache.set(place, decode(payload.arrays[place]));
      return cache.get(place);
    };
    return (indices) => {
      const place = payload.controls.reduce((sum, control, i) => sum * control.values.length + indices[i], 0);
      const point = payload.points[place];
      if ("e" in point) return { missing: point.e };
      const data = point.t.map((id) => fill(payload.traces[id], lists));
      return { data, layout: fill(payload.layouts[point.l], lists), summary: point.s, note: point.n ?? "" };
    };
  }

  // ---- figure -> table (the same rules as figure_table in describe.py) -----------------------------------------
  const ENTITIES = [["<br>", " "], ["&#123;", "{"], ["&#36;", "$"], ["&gt;", ">"], ["&lt;", "<"], ["&amp;", "&"]];
  const plain = (text) => ENTITIES.reduce((out, [from, to]) => out.replaceAll(from, to), String(text));
  const cell = (value) => (typeof value === "string" ? plain(value) : Number.isNaN(value) ? null : (value ?? null));

  function axisTitle(layout, trace, axis) {
    const name = trace[`${axis}axis`] ?? axis;
    return plain(layout[`${axis}axis${name.slice(1)}`]?.title?.text || axis);
  }

  function tableOf({ data, layout }) {
    if (layout.meta?.table) return layout.meta.table;
    const columns = ["series"];
    const rows = [];
    data.forEach((trace, index) => {
      if (trace.meta === "decoration" || trace.visible === false) return;
      const [names, values] = GRIDS.includes(trace.type) ? gridColumns(trace, layout) : pointColumns(trace, layout);
      const places = names.map((name) => {
        if (!columns.includes(name)) columns.push(name);
        return columns.indexOf(name);
      });
      const series = trace.name ? plain(trace.name) : `series ${index + 1}`;
      for (let r = 0; r < (values[0]?.length ?? 0); r++) {
        const row = [series];
        places.forEach((place, i) => (row[place] = values[i][r]));
        rows.push(row);
      }
    });
    for (const row of rows) for (let i = 0; i < columns.length; i++) row[i] ??= null;
    return { columns, rows };
  }

  function axisNames(trace, layout) {
    const [x, y] = [axisTitle(layout, trace, "x"), axisTitle(layout, trace, "y")];
    return x === y ? [`${x} (x)`, `${y} (y)`] : [x, y];
  }

  function gridColumns(trace, layout) {
    const z = Array.from(trace.z, (row) => Array.from(row));
    const x = trace.x ?? z[0].map((_, i) => i);
    const y = trace.y ?? z.map((_, i) => i);
    const names = [...axisNames(trace, layout), plain(trace.colorbar?.title?.text || "value")];
    return [names, [z.flatMap((row) => row.map((_, c) => cell(x[c]))), z.flatMap((row, r) => row.map(() => cell(y[r]))),
      z.flat().map(cell)]];
  }

  function pointColumns(trace, layout) {
    const [xName, yName] = axisNames(trace, layout);
    const length = Math.max(trace.x?.length ?? 0, trace.y?.length ?? 0);
    const full = (list) => Array.from({ length }, (_, i) => cell(list[i]));
    const names = [];
    const values = [];
    const add = (name, list) => { names.push(name); values.push(list); };
    if (trace.x) add(xName, full(trace.x));
    if (trace.y) add(yName, full(trace.y));
    if (trace.error_y?.array) {
      const y = full(trace.y);
      const minus = trace.error_y.arrayminus ?? trace.error_y.array;
      const off = (list, sign) => y.map((v, i) => (v === null || cell(list[i]) === null ? null : v + sign * list[i]));
      add(`${yName}, low`, off(minus, -1));
      add(`${yName}, high`, off(trace.error_y.array, 1));
    }
    if (trace.text && typeof trace.text !== "string" && trace.text.length === length) add("text", full(trace.text));
    return [names, values];
  }

  function csvOf({ columns, rows }) {
    const quote = (v) => (v === null ? "" : /[",\n\r]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
    return [columns, ...rows].map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
  }

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
  return { mount, mountAll, renderWidget, addStyle, tableOf, csvOf, node, controlFor };
})();
