// Save a chart as a picture or as numbers.

import { theme } from "./dom.js";

function download(name, url) {
  const link = document.createElement("a");
  link.download = name;
  link.href = url;
  link.click();
}

const fileName = (chart, end) => `${chart.name.replace(/[^\w-]+/g, "-")}.${end}`;

/** Save what a chart shows, with its title and legend. */
export function savePng(chart) {
  const source = chart.plot?.ctx.canvas ?? chart.canvas;
  const colours = theme(chart.stage);
  const scale = devicePixelRatio;
  const named = (chart.lines ?? []).filter((line) => line.style !== "faint");
  const [above, below] = [28 * scale, (14 + 18 * named.length) * scale];
  const picture = document.createElement("canvas");
  picture.width = source.width;
  picture.height = above + source.height + below;
  const pen = picture.getContext("2d");
  pen.fillStyle = colours.surface;
  pen.fillRect(0, 0, picture.width, picture.height);
  pen.drawImage(source, 0, above);
  pen.fillStyle = colours.text;
  pen.font = `bold ${14 * scale}px system-ui`;
  pen.fillText(chart.name, 8 * scale, 19 * scale);
  pen.font = `${12 * scale}px system-ui`;
  named.forEach((line, k) => {
    const y = above + source.height + (16 + 18 * k) * scale;
    pen.fillStyle = line.colour;
    pen.fillRect(8 * scale, y - 8 * scale, 16 * scale, 4 * scale);
    pen.fillStyle = colours.text;
    pen.fillText(line.label, 30 * scale, y - 2 * scale);
  });
  picture.toBlob((blob) => {
    const url = URL.createObjectURL(blob);
    download(fileName(chart, "png"), url);
    URL.revokeObjectURL(url);
  });
}

/** Save the numbers of a chart, a row for each place on its x axis. */
export function saveCsv(chart) {
  const quote = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const [head, rows] = chart.numbers();
  const text = [head, ...rows].map((row) => row.map((cell) => quote(String(cell))).join(",")).join("\r\n");
  const url = URL.createObjectURL(new Blob([`${text}\r\n`], { type: "text/csv" }));
  download(fileName(chart, "csv"), url);
  URL.revokeObjectURL(url);
}
