// The viewer in a page of its own: the records stand in the page.

import { App } from "./app.js";

/** Show the records that the page holds, above what can be read without scripts. */
export async function openPage() {
  const { runs } = JSON.parse(await unpack(document.getElementById("records").textContent));
  const app = new App(document.getElementById("viewer"), pageAddress());
  app.expect(runs.map(({ run }) => run));
  for (const { run, records, problems } of runs) app.add(run, records, problems);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const restyle = () => {
    app.restyle(dark.matches);
    document.body.classList.toggle("dark", dark.matches);
  };
  dark.addEventListener("change", restyle);
  restyle();
  document.getElementById("report").open = false;
}

/** Return the text that was compressed and written in base64. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

/** A page inside a notebook has no address of its own. */
function pageAddress() {
  if (location.protocol === "about:") return { read: () => "", write: () => {} };
  return { read: () => location.hash.slice(1), write: (text) => history.replaceState(null, "", `#${text}`) };
}
