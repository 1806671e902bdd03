// Sends the requests of a plan over keep-alive, with what the first argument names: fetch or agent.
// A line of the plan: status, method, path, header or -, bytes; separated by tabs. Prints what differs.
import { readFileSync } from 'node:fs';
import http from 'node:http';

const [library, address, plan] = process.argv.slice(2);
const rows = readFileSync(plan, 'ascii').trimEnd().split('\n').map(line => line.split('\t'));
const headersOf = header => (header === '-' ? {} : Object.fromEntries([header.split(': ')]));

function check(number, row, status, body) {
  const known = body.includes(row[0] === '200' ? 'MsgId' : 'urn:tollgate:');
  if (String(status) !== row[0] || !known) {
    console.log('request', number, row.join(' '), 'was answered', status, body.slice(0, 200));
  }
}

async function withFetch([, method, path, header, size]) {
  const body = new Uint8Array(Number(size)).fill(120);
  const answer = await fetch(`http://${address}${path}`, { method, body, headers: headersOf(header) });
  return [answer.status, await answer.text()];
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function withAgent([, method, path, header, size]) {
  const body = Buffer.alloc(Number(size), 'x');
  const headers = { ...headersOf(header), 'content-length': body.length };
  return new Promise((resolve, reject) => {
    const request = http.request(`http://${address}${path}`, { agent, method, headers }, answer => {
      let text = '';
      answer.on('data', part => { text += part; });
      answer.on('end', () => resolve([answer.statusCode, text]));
      answer.on('error', reject);
    });
    request.on('error', reject);
    request.end(body);
  });
}

for (const [number, row] of rows.entries()) {
  try {
    const [status, body] = await (library === 'fetch' ? withFetch : withAgent)(row);
    check(number, row, status, body);
  } catch (error) {
    console.log('request', number, row.join(' '), 'failed:', String(error.cause ?? error));
  }
}
console.log('sent', rows.length);
agent.destroy();
