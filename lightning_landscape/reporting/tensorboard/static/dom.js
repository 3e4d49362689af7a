// Small helpers to build elements.

/** Return an element with properties, listeners (`onclick: f`), ARIA attributes and children. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replace what an element contains. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** Place a tip beside a point, on the side where there is room for it. */
export function placeTip(tip, x, y, room) {
  const right = x > room / 2;
  tip.style.left = right ? "" : `${x + 14}px`;
  tip.style.right = right ? `${room - x + 14}px` : "";
  tip.style.top = `${y}px`;
}

/** Return a table; the first cell of each row is its header. */
export function table(head, rows, caption = "") {
  const cell = (tag, scope) => (content) => {
    const element = h(tag, scope ? { scope } : {});
    element.append(content);
    return element;
  };
  return h(
    "table",
    {},
    caption ? h("caption", { textContent: caption }) : null,
    h("thead", {}, h("tr", {}, head.map(cell("th", "col")))),
    h("tbody", {}, rows.map(([first, ...rest]) => h("tr", {}, cell("th", "row")(first), rest.map(cell("td"))))),
  );
}

/** Return the colours of the page's theme that canvases need. */
export function theme(element) {
  const style = getComputedStyle(element);
  const names = ["text", "quiet", "grid", "surface"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
