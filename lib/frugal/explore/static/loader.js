// The module every Frugal widget carries. It only finds the shared script: the texts of frugal.js and plotly.js are
// held by one `Assets` model per kernel and are turned into modules once per page, however many explorers it shows.

const REFERENCE = "IPY_MODEL_";

async function sharedModel(model) {
  const reference = model.get("assets");
  if (typeof reference !== "string") return reference;
  return model.widget_manager.get_model(reference.slice(REFERENCE.length));
}

async function importText(...parts) {
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  try {
    return (await import(/* webpackIgnore: true */ url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function loadPlotly(bytes) {
  const before = globalThis.Plotly; // the bundle also writes window.Plotly: leave other people's copy alone
  const plotly = await importText("const module = { exports: {} };\n", bytes, "\nexport default module.exports;");
  if (before === undefined) delete globalThis.Plotly;
  else globalThis.Plotly = before;
  return plotly;
}

async function loadOnce(shared) {
  const pages = (globalThis.__frugal_modules ??= new Map());
  const version = shared.get("version");
  if (!pages.has(version)) {
    const loading = Promise.all([
      importText(shared.get("script"), "\nexport default globalThis.frugal;"),
      loadPlotly(shared.get("plotly")),
    ]).then(([frugal, plotly]) => {
      frugal.addStyle(shared.get("style"), version);
      return { frugal, plotly };
    });
    pages.set(version, loading);
    loading.catch(() => pages.delete(version)); // a failed start must not spoil the next one
  }
  return pages.get(version);
}

async function render({ model, el }) {
  try {
    const { frugal, plotly } = await loadOnce(await sharedModel(model));
    return frugal.renderWidget({ model, element: el, plotly });
  } catch (error) {
    el.textContent = `The explorer could not start: ${error.message ?? error}. Run its cell again.`;
    throw error;
  }
}

export default { render };
