// The viewer as a tab of TensorBoard.

import { App } from "./app.js";

const HERE = new URL(".", import.meta.url);
const NAME = "landscape";
const [FIRST, ALL] = [50, 0]; // probes of a run to ask for

/** Called by TensorBoard in an empty iframe of the same origin. */
export async function render() {
  await Promise.all([addStyle("vendor/uPlot.min.css"), addStyle("style.css"), addScript("vendor/uPlot.iife.min.js")]);
  document.documentElement.lang = "en";
  document.title = "Landscape";
  const root = document.createElement("div");
  document.body.replaceChildren(root);
  const app = new App(root, parentAddress());
  followTheme(app);
  const refresh = makeRefresh(app);
  onReload(refresh);
  let shown = false;
  // TensorBoard forgets what stands behind the tab's name when it shows another one
  new ResizeObserver(() => {
    if (root.clientHeight === 0) shown = false;
    else if (!shown) {
      shown = true;
      app.state.write();
      window.focus(); // so that arrow keys move the step
    }
  }).observe(root);
  await refresh();
}

/** Return a function that fetches what is new; a second call waits for the first. */
function makeRefresh(app) {
  const latest = new Map();
  let running = null;
  const add = async (query) => {
    const found = await fetchJson(`../records?${new URLSearchParams(query)}`);
    app.add(query.run, found.records, found.problems);
    return found;
  };
  const fetchAll = async () => {
    const long = []; // runs that are first shown by a selection of their probes
    try {
      const { runs } = await fetchJson("../runs");
      app.expect(runs.map(({ run }) => run));
      const changed = runs.filter(({ run, latest: time }) => !(latest.get(run) >= time));
      await Promise.all(changed.map(async ({ run }) => {
        const query = { run, after: latest.get(run) ?? 0 };
        const some = await add({ ...query, most: latest.has(run) ? ALL : FIRST });
        if (some.left_out) long.push(query);
        else latest.set(run, some.latest);
      }));
      await Promise.all(long.map(async (query) => latest.set(query.run, (await add(query)).latest)));
      app.say("");
    } catch (error) {
      app.say(`TensorBoard did not answer: ${error.message}. The next reload tries again.`);
    }
  };
  return () => (running ??= fetchAll().finally(() => (running = null)));
}

async function fetchJson(route) {
  const response = await fetch(new URL(route, HERE));
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

function addStyle(name) {
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL(name, HERE) });
  return added(link);
}

function addScript(name) {
  return added(Object.assign(document.createElement("script"), { src: new URL(name, HERE) }));
}

function added(element) {
  return new Promise((resolve, reject) => {
    element.onload = resolve;
    element.onerror = () => reject(new Error(`${element.src || element.href} cannot be loaded`));
    document.head.append(element);
  });
}

/** Keep the state behind the tab's name in the address of TensorBoard itself. */
function parentAddress() {
  const prefix = `p.${NAME}.`;
  const parts = () => parent.location.hash.replace(/^#/, "").split("&");
  return {
    read: () => parts().filter((part) => part.startsWith(prefix)).map((part) => part.slice(prefix.length)).join("&"),
    write: (text) => {
      if (parts()[0] !== NAME) return; // another tab is shown
      const others = parts().filter((part) => !part.startsWith(prefix));
      const own = text ? text.split("&").map((part) => prefix + part) : [];
      parent.history.replaceState(parent.history.state, "", `#${[...others, ...own].join("&")}`);
    },
  };
}

function followTheme(app) {
  const body = parent.document.body;
  const apply = () => app.restyle(body.classList.contains("dark-mode"));
  new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  apply();
}

/** Call back whenever TensorBoard has reloaded its data. */
function onReload(callback) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const { type, id, isReply } = JSON.parse(data);
    if (isReply) return;
    if (type === "experimental.DataReloaded") callback();
    port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
  };
  parent.postMessage("experimental.bootstrap", "*", [port2]);
}
