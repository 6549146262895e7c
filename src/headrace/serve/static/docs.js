// The API's reference, made from openapi.json: each operation with its parameters and a curl line to try.

const root = document.getElementById("operations");
const make = (tag, text, cls) => { const node = document.createElement(tag); if (text !== undefined) node.textContent = text; if (cls) node.className = cls; return node; };

function curl(path, verb, operation) {
  const at = location.origin + path.replace("{topic}", "events");
  if (path.startsWith("/ws/")) return `# WebSocket\n${at.replace(/^http/, "ws")}`;
  if (operation.responses["200"]?.content?.["text/event-stream"]) return `curl -N ${at}`;
  const content = operation.requestBody?.content?.["application/json"];
  if (!content) {
    const wanted = (operation.parameters ?? []).filter((p) => p.in === "query" && ["metric", "start_time", "limit"].includes(p.name));
    const example = { metric: "cpu_percent", start_time: "-5m", limit: "10" };
    const query = wanted.map((p) => `${p.name}=${example[p.name]}`).join("&");
    return `curl '${at}${query ? `?${query}` : ""}'`;
  }
  return `curl -X ${verb.toUpperCase()} ${at} \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(bodyExample(content)).replaceAll("'", "'\\''")}'`;
}

function bodyExample(content) {
  if (content.example) return content.example;
  const schema = resolve(content.schema);
  return Object.fromEntries(Object.entries(schema.properties ?? {})
    .filter(([name]) => (schema.required ?? []).includes(name))
    .map(([name, property]) => [name, property.examples?.[0] ?? (name === "source" ? "system_metrics" : "")]));
}

let document_ = null;
function resolve(schema) {
  if (schema?.anyOf) schema = schema.anyOf.find((option) => option.$ref) ?? schema;
  return schema?.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : (schema ?? {});
}

function type(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(type).filter((t) => t !== "null").join(" or ");
  return schema.type ?? resolve(schema).type ?? "";
}

function parameterTable(list) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const title of ["Parameter", "Type", "Default", "What"]) { const th = make("th", title); th.scope = "col"; head.append(th); }
  const body = table.createTBody();
  for (const { name, schema, description, required } of list) {
    const row = body.insertRow();
    const th = make("th"); th.scope = "row"; th.append(make("code", name)); row.append(th);
    row.append(make("td", type(schema)), make("td", schema.default === undefined || schema.default === null ? (required ? "required" : "") : String(schema.default)), make("td", description ?? schema.description ?? ""));
  }
  const scroll = make("div", undefined, "scroll");
  scroll.append(table);
  return scroll;
}

function show(path, verb, operation) {
  const article = make("article");
  const title = make("h3");
  title.append(make("span", path.startsWith("/ws/") ? "WS" : verb.toUpperCase(), "verb"), make("code", path));
  article.append(title, make("p", operation.summary ?? ""));
  const parameters = [...(operation.parameters ?? [])];
  const schema = resolve(operation.requestBody?.content?.["application/json"]?.schema);
  for (const [name, property] of Object.entries(schema.properties ?? {}))
    parameters.push({ name, schema: property, description: property.description, required: (schema.required ?? []).includes(name) });
  if (parameters.length) article.append(parameterTable(parameters));
  const row = make("div", undefined, "copy");
  const pre = make("pre", curl(path, verb, operation));
  pre.tabIndex = 0;
  row.append(pre);
  article.append(row);
  return article;
}

try {
  document_ = await (await fetch("/openapi.json")).json();
  const groups = new Map();
  for (const [path, verbs] of Object.entries(document_.paths))
    for (const [verb, operation] of Object.entries(verbs)) {
      const tag = operation.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(show(path, verb, operation));
    }
  root.replaceChildren();
  for (const [tag, articles] of groups) {
    const stack = make("div", undefined, "stack");
    stack.append(...articles);
    root.append(make("h2", tag[0].toUpperCase() + tag.slice(1)), stack);
  }
} catch {
  root.replaceChildren(make("p", "The description could not be loaded; is headrace still running?"));
}
