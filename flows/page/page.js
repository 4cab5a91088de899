"use strict";
// Pictures are sent one after another as they are; nothing is kept by the server or in the browser.

const address = document.body.dataset.address;
const $ = (id) => document.getElementById(id);
const element = (name, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
};
const percent = (value) => (100 * value).toFixed(1) + " %";

async function send(path, file, headers = {}) {
  const reply = await fetch(path, { method: "POST", body: file, headers });
  if (reply.ok) return reply;
  let problem = reply.statusText;
  try { problem = (await reply.json()).error || problem; } catch { /* it was no JSON */ }
  throw new Error(problem);
}

function beside() {
  const fields = [...document.querySelectorAll("[data-column]")].filter((field) => field.value);
  const known = Object.fromEntries(fields.map((field) => [field.dataset.column, field.value]));
  return { "X-Beside": encodeURIComponent(JSON.stringify(known)) };
}

function told(answer, said) {
  said.append(element("p", {}, element("strong", { textContent: answer.label }), " " + percent(answer.probability)));
  if (answer.unknown) said.append(element("p", { className: "problem", textContent: "Perhaps none of the classes it knows." }));
  if (answer.prediction_set) {
    const names = answer.prediction_set.join(", ") || "none fits";
    said.append(element("p", { className: "note", textContent: "Cannot be excluded: " + names }));
  }
  const shares = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [name, value] of shares.slice(0, 5)) {
    said.append(element("div", { className: "share" }, element("span", { textContent: name }),
      element("meter", { min: 0, max: 1, value, title: name }), element("span", { textContent: percent(value) })));
  }
}

async function showSimilar(file, said) {
  const near = await (await send(address + "/similar", file)).json();
  if (!near.length) return;
  said.append(element("p", { className: "note", textContent: "Kept pictures that it sees most like this one (likeness 1: the same), whatever it answers:" }),
    element("div", { className: "similar" }, ...near.map((own) => element("figure", {},
      element("img", { alt: own.label, src: own.picture }),
      element("figcaption", { textContent: `${own.label}, likeness ${own.likeness.toFixed(3)}` })))));
}

function offerMap(file, answer, row) {
  const button = element("button", { type: "button", className: "plain", textContent: "Where is it seen?" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Looking ...";
    try {
      const reply = await send(address + "/heat-map?label=" + encodeURIComponent(answer.label), file);
      const alt = "The picture, and beside it red where it speaks for " + answer.label;
      row.append(element("img", { className: "map", alt, src: URL.createObjectURL(await reply.blob()) }));
      button.remove();
    } catch (error) {
      button.replaceWith(element("p", { className: "problem", textContent: error.message }));
    }
  });
  return button;
}

async function ask(files) {
  const most = Number($("pictures").dataset.most);
  let done = 0;
  for (const file of files) {
    $("progress").textContent = `${done} of ${files.length} pictures answered`;
    const said = element("div", { className: "said" }, element("p", { className: "note", textContent: file.name }));
    const thumb = element("img", { className: "thumb", alt: "", src: URL.createObjectURL(file) });
    thumb.addEventListener("error", () => thumb.remove());
    const row = element("li", {}, thumb, said);
    $("answers").append(row);
    try {
      if (file.size > most) throw new Error(`larger than ${Math.round(most / 2 ** 20)} MB`);
      const answer = await (await send(address + "/answer", file, beside())).json();
      told(answer, said);
      said.append(offerMap(file, answer, row));
      await showSimilar(file, said);
    } catch (error) {
      said.append(element("p", { className: "problem", textContent: error.message }));
    }
    done += 1;
  }
  $("progress").textContent = `${done} of ${files.length} pictures answered`;
}

if ($("pictures")) {
  const drop = $("drop");
  $("pictures").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    await ask(files);
    event.target.value = "";
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") ask([...event.dataTransfer.files]);
    });
  }
}

async function follow(before) {
  const job = await (await fetch(address + "/job")).json();
  const running = job.status === null;
  $("job").hidden = !job.command;
  $("command").textContent = job.command;
  $("lines").textContent = job.lines.join("\n");
  $("lines").scrollTop = $("lines").scrollHeight;
  $("status").textContent = running ? "runs" : job.status === 0 ? "done" : `ended with status ${job.status}`;
  $("stop").hidden = !running;
  if (running) setTimeout(() => follow(true), 1000);
  else if (before) $("status").after(" ", element("a", { href: address, textContent: "Show what came of it" }));
}
follow(false);
