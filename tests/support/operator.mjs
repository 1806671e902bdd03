// Reads manifests as JSON, and holds those of the Prometheus operator against its types, in the folder of the first
// argument. Prints how many there were.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const types = `${process.argv[2]}/node_modules/@kubernetes-models/prometheus-operator`;

// The types let unknown keys pass, which the operator would ignore. But a key that they know is read, or listed.
const watch = (value, path, unread) => {
  if (typeof value !== "object" || value === null) return value;
  const inner = Object.fromEntries(Object.keys(value).map((key) => [key, watch(value[key], `${path}.${key}`, unread)]));
  const keys = new Set(Array.isArray(value) ? [] : Object.keys(value).map((key) => `${path}.${key}`));
  keys.forEach((key) => unread.add(key));
  const read = (key) => unread.delete(`${path}.${String(key)}`);
  return new Proxy(Array.isArray(value) ? Object.values(inner) : inner, {
    get: (target, key) => (read(key), Reflect.get(target, key)),
    ownKeys: (target) => (Object.keys(inner).forEach(read), Reflect.ownKeys(target)),
  });
};

let count = 0;
for (const manifest of JSON.parse(readFileSync(0))) {
  if (!manifest.apiVersion.startsWith("monitoring.coreos.com/")) continue;
  const { [manifest.kind]: Type } = await import(pathToFileURL(`${types}/${manifest.apiVersion}/${manifest.kind}.js`));
  new Type(manifest).validate();
  const unread = new Set();
  const watched = new Type({});
  watched.spec = watch(manifest.spec, "spec", unread);
  watched.validate();
  if (unread.size > 0) throw new Error(`${manifest.kind} does not know ${[...unread].join(", ")}`);
  count += 1;
}
console.log(count);
