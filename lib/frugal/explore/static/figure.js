// From the payload to a figure, its table and its CSV; nothing here touches the page. The payload's format is
// described in frugal/explore/__init__.py, the table's rules are those of figure_table in describe.py.
globalThis.frugal = (() => {
  "use strict";
  const TYPES = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };
  const GRIDS = ["heatmap", "contour", "histogram2d"];

  // ---- payload -> figure -------------------------------------------------------------------------------------
  function decode(item) {
    if (Array.isArray(item)) return item;
    const bytes = Uint8Array.from(atob(item.bdata), (c) => c.charCodeAt(0));
    const codes = new TYPES[item.dtype](bytes.buffer);
    const flat = item.words ? Array.from(codes, (code) => item.words[code]) : codes;
    if (item.shape.length === 1) return flat;
    const [rows, cols] = item.shape;
    return Array.from({ length: rows }, (_, r) => flat.slice(r * cols, (r + 1) * cols));
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
    const own = layout.meta?.table; // a row of numbers comes as a typed array, in which "missing" is NaN
    if (own) return { columns: own.columns, rows: Array.from(own.rows, (row) => Array.from(row, (v) => (Number.isNaN(v) ? null : v))) };
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

  return { reader, plain, tableOf, csvOf };
})();
