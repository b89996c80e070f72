// The form of a live explorer: the reader's inputs, Run, Cancel, progress. The run itself is in Python (live.py).
(() => {
  "use strict";
  const { node, controlFor } = globalThis.frugal;
  let counter = 0;

  // Each field: {element, name, read()} with read() -> value, or {file, name} for bytes.
  function field(input, id) {
    const label = node("label", { for: id, class: "frugal-label", text: input.label });
    if (input.kind === "slider" || input.kind === "select") {
      let index = input.initial;
      const control = controlFor(input, index, id, (next) => control.show((index = next)));
      return { element: control.element, inputs: [control.input], read: () => index };
    }
    let box;
    if (input.kind === "text") {
      box = node(input.rows > 1 ? "textarea" : "input", { id, name: input.name, maxlength: input.max_chars, spellcheck: "false" });
      if (input.rows > 1) box.rows = input.rows;
      else box.type = "text";
      box.value = input.value;
    } else {
      box = node("input", { id, name: input.name, type: "file", accept: input.accept });
    }
    const read = input.kind === "text" ? () => box.value : () => box.files[0] ?? null;
    const hint = node("span", { class: "frugal-ends", text: input.hint ?? "", id: `${id}-hint` });
    box.setAttribute("aria-describedby", hint.id);
    const element = node("div", { class: "frugal-control" }, label, node("span", { class: "frugal-track" }, box, hint));
    return { element, inputs: [box], read };
  }

  const seconds = (s) => (s < 10 ? `${s.toFixed(1)} s` : s < 120 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);

  function liveForm(model) {
    const id = `frugal-live-${++counter}`;
    const declared = model.get("inputs");
    const fields = declared.map((input) => field(input, `${id}-${input.name}`));
    const run = node("button", { type: "submit", class: "frugal-primary", text: "Run" });
    const cancel = node("button", { type: "button", text: "Cancel", onclick: () => model.send({ do: "cancel" }) });
    const bar = node("progress", { max: 1, "aria-label": "Progress of the run" });
    const left = node("span", { class: "frugal-unit" });
    const status = node("p", { class: "frugal-status", role: "status" });
    const actions = node("div", { class: "frugal-actions" }, node("div", {}, run, cancel, bar, left));
    const element = node("form", { class: "frugal-form" },
      ...fields.map((f) => f.element), actions, status);

    async function send() {
      const values = {};
      const buffers = [];
      for (const [i, input] of declared.entries()) {
        const value = fields[i].read();
        values[input.name] = value;
        if (!(value instanceof Blob)) continue;
        if (value.size > input.max_bytes) {
          return say(`${input.label}: ${value.name} has ${value.size} bytes; at most ${input.max_bytes} are taken.`, true);
        }
        values[input.name] = { name: value.name, buffer: buffers.length };
        buffers.push(await value.arrayBuffer());
      }
      model.send({ do: "run", values }, undefined, buffers);
    }

    function say(text, bad = false) {
      status.textContent = text;
      status.classList.toggle("frugal-bad", bad);
    }

    function show() {
      const state = model.get("state");
      run.disabled = state.running;
      cancel.disabled = !state.running;
      bar.hidden = left.hidden = !state.running;
      if (state.fraction > 0) bar.value = state.fraction;
      else bar.removeAttribute("value");
      left.textContent = state.remaining_s === null ? "" : `about ${seconds(state.remaining_s)} left`;
      if (status.textContent !== state.message) say(state.message, state.bad);
      element.dataset.running = state.running;
    }

    element.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!run.disabled) send();
    });
    element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !run.disabled) send();
    });
    model.on("change:state", show);
    show();
    return { element, destroy: () => model.off("change:state", show) };
  }

  globalThis.frugal.liveForm = liveForm;
})();
