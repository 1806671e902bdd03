// Fetches /status.json once a second and shows it. All values are set as text, never as markup.

import { COUNTED, Chart, History } from './chart.js';
import { age, ago, bytes, clock, moment, money, number, percent, plural, rate, share, span, until } from './words.js';

const SECOND = 1000, PATIENCE = 5000, LONGEST = 10_000;
// The most rows of each list.
const TOPICS = 10, PAUSED = 8, CONCERNS = 6, MEMBERS = 12;

const $ = id => document.getElementById(id);

// === showing ===

/** Sets text only where it differs: selections stay, and screen readers announce only changes. */
function setText(node, text) {
  text = String(text ?? '');
  if (node.textContent !== text) node.textContent = text;
}

const show = (id, text) => setText($(id), text);
const hide = (id, hidden) => { $(id).hidden = hidden; };

/** Each item in a copy of the list's template; rows are used again. */
function repeat(id, items, more) {
  const list = $(id), template = list.querySelector('template');
  const rows = [...list.children].filter(child => child !== template);
  rows.slice(items.length).forEach(row => row.remove());
  items.forEach((item, i) => {
    let row = rows[i];
    if (!row) {
      row = template.content.firstElementChild.cloneNode(true);
      list.append(row);
    }
    for (const field of row.querySelectorAll('[data-f]')) {
      if (field.dataset.f in item) setText(field, item[field.dataset.f]);
    }
    if (row.dataset.f in item) setText(row, item[row.dataset.f]);
    if (item.level) row.dataset.level = item.level;
    more?.(row, item);
  });
  const empty = $(id + '-empty');
  if (empty) empty.hidden = items.length > 0;
  const table = list.closest('table');
  if (table) table.hidden = items.length === 0;
}

function meter(bar, share, words, reserved = 0) {
  const [used, held] = bar.children, width = n => Math.max(0, Math.min(100, 100 * n)) + '%';
  used.style.width = width(share);
  if (held) held.style.width = width(Math.min(reserved, 1 - share));
  bar.dataset.level = share + reserved >= 1 ? 'bad' : share + reserved >= 0.8 ? 'warn' : 'ok';
  bar.setAttribute('aria-valuenow', Math.round(Math.min(100, 100 * (share + reserved))));
  bar.setAttribute('aria-valuetext', words);
}

// === problems ===

// As in `tollgate status`.
const LEVELS = { bad: 'Problem', warn: 'Warning' };

/** When it began, and whether it is there now. */
const times = (c, now) => [c.since && `began ${ago(c.since, now)}`, c.last_seen && `last seen ${ago(c.last_seen, now)}`].filter(Boolean).join(', ');

function state(concerns, lost, now) {
  const bad = concerns.filter(c => c.level === 'bad').length, warn = concerns.length - bad;
  const level = lost || bad ? 'bad' : warn ? 'warn' : 'ok';
  const count = [bad && plural(bad, 'problem', 'problems'), warn && plural(warn, 'warning', 'warnings')].filter(Boolean).join(', ');
  $('state').dataset.level = level;
  // A single concern is its own headline.
  $('state').dataset.count = lost ? 0 : concerns.length;
  show('headline-words', lost ?? (count || 'No problems'));
  // Visible below; this lets a screen reader announce it with the headline.
  show('headline-worst', lost || !concerns.length ? '' : ': ' + concerns[0].title);
  document.title = (lost ? 'Disconnected – ' : concerns.length ? `${count} – ` : '') + 'tollgate' + (latest?.name ? ' ' + latest.name : '');
  const shown = lost ? [] : concerns.slice(0, CONCERNS).map(c => ({ ...c, times: times(c, now) }));
  repeat('concerns', shown, (row, c) => setText(row.querySelector('.tag'), LEVELS[c.level] ?? c.level));
  hide('concerns-more', lost || concerns.length <= CONCERNS);
  show('concerns-more', `and ${concerns.length - CONCERNS} more in /status.json`);
}

// === the figures ===

const history = new History();
let chart, columns, latest = null, cursor = null, samples = [];

function legend() {
  if (columns) repeat('legend', chart.legend(columns, cursor), (row, item) => { row.dataset.line = item.key; });
  const second = cursor === null ? null : columns?.[0][cursor];
  show('chart-words', second ? 'At ' + clock(second * 1000) : above);
}

let above = '';

function draw(s) {
  const limit = name => s.ceilings.find(c => c.name === name)?.limit ?? null;
  columns = history.columns();
  const hidden = chart.show(columns, { account: limit('account'), egress_ip: limit('egress_ip'), plan: s.plan_tps });
  const largest = history.largest('billable');
  const past = history.whole ? 'in the last 15 minutes' : 'since the start';
  above = COUNTED.every(column => history.largest(column) === 0) ? `No message ${past}.`
    : hidden.length ? `Above the chart: ${hidden.join(', ')}.` : '';
  legend();
  show('chart-title', `Messages per second, ${history.whole ? 'last 15 minutes' : `${span(history.length)} since the start`}`);
  $('chart').setAttribute('aria-label', `Chart of messages per second ${past}: ${number(s.tps)} delivered in the last second, ${number(largest)} in the largest; ${number(history.sum('refused'))} refused, ${number(history.sum('failed'))} failed, ${number(history.last('backlog'))} in the backlog.`);
}

const CEILINGS = { account: 'account', egress_ip: 'egress addresses' };

function figures(s) {
  accepted(s.last_minute);
  show('tps', number(s.tps));
  show('peak', number(s.tps_peak) + (s.plan_tps ? ` of ${number(s.plan_tps)} bought` : ''));
  const limited = s.ceilings.filter(c => c.limit !== null);
  const tightest = limited.reduce((a, b) => a && a.used / a.limit >= b.used / b.limit ? a : b, null);
  const use = tightest ? tightest.used / tightest.limit : 0;
  show('use', tightest ? percent(use) : 'none');
  show('use-of', tightest ? `of ${number(tightest.limit)}/s` : '');
  show('use-words', limited.length ? limited.map(c => `${CEILINGS[c.name] ?? c.name} ${number(c.used)} of ${number(c.limit)}`).join(', ') : 'No ceiling is configured.');
  $('use-bar').hidden = !tightest;
  meter($('use-bar'), use, percent(use));
  const unanswered = Math.max(...s.ceilings.map(c => c.unanswered ?? 0));
  show('unanswered', unanswered ? `, ${number(unanswered)} without an answer` : '');
  show('queued', s.kept ? number(s.kept.queued) : 'none');
  show('queued-unit', s.kept ? (s.kept.queued === 1 ? 'message' : 'messages') : '');
  show('outlook', !s.kept ? '' : s.kept.queued ? s.backlog.outlook : 'empty');
  show('queued-words', !s.kept ? 'Nothing is stored: spool.store is "none"'
    : [s.kept.oldest && s.kept.queued && `oldest ${age(s.kept.oldest, s.now)}`, plural(s.kept.dead, 'dead letter', 'dead letters')].filter(Boolean).join(', '));
}

/** What callers got in the last minute. */
function accepted(minute) {
  const { requests, accepted_ratio, p50_seconds, p99_seconds } = minute;
  show('accepted', accepted_ratio === null ? '–' : share(accepted_ratio));
  show('accepted-of', requests ? `of ${plural(requests, 'request', 'requests')}` : 'no request');
  show('latency', p50_seconds === null ? 'No message was accepted.' : `p50 ${span(p50_seconds)}, p99 ${span(p99_seconds)}`);
  const counts = ['stored', 'refused', 'failed', 'invalid'].filter(word => minute[word]).map(word => `${number(minute[word])} ${word}`);
  show('not-accepted', counts.join(', '));
}

const OUTCOMES = {
  delivered: ['Delivered', '200', 'ok'], queued: ['Stored', '202', 'ok'],
  over_ceiling: ['Over a ceiling', '429', 'warn'], over_budget: ['Over a budget', '429', 'warn'],
  refused: ['Message refused', '422', 'bad'],
  failed: ['Failed', '502, 504, 410', 'bad'], unknown: ['Outcome unknown', '504', 'bad'],
  invalid: ['Invalid request', '4xx', 'warn'], draining: ['While stopping', '503', 'warn'],
  full: ['Queue or spool full', '503', 'bad'],
};

/** Rates are means of the last few seconds: those of a single second vary too much. */
function outcomes(s) {
  const at = Date.parse(s.now);
  samples = samples.filter(sample => at - sample.at < 6 * SECOND && sample.at < at);
  const first = samples[0];
  const per = word => first ? (s.outcomes[word] - first.outcomes[word]) * SECOND / (at - first.at) : null;
  samples.push({ at, outcomes: s.outcomes });
  const rows = Object.entries(s.outcomes).filter(([, total]) => total > 0).map(([word, total]) => {
    const [name, status, level] = OUTCOMES[word] ?? [word, '', 'warn'], now = per(word);
    return { name, status, level, rate: now === null ? '–' : rate(now), total: number(total) };
  });
  const order = Object.values(OUTCOMES).map(([name]) => name);
  repeat('outcomes', rows.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name)));
}

function backlog(s) {
  const rows = [['Waiting for a permit', number(s.waiting) + (s.waiting ? `, the first for ${span(s.longest_wait_seconds)}` : '')]];
  if (s.kept) {
    rows.push(['Backlog: stored for delivery', number(s.kept.queued)],
      ['Oldest of them', s.kept.oldest && s.kept.queued ? age(s.kept.oldest, s.now) : '–'],
      ['Dead letters', number(s.kept.dead)],
      ['Spool in use', `${percent(s.kept.full)}, ${bytes(s.kept.bytes)}`]);
    if (s.kept.failure) rows.push([String(s.kept.durability).startsWith('redis') ? 'Error of Redis' : 'Error of the disk', s.kept.failure]);
  } else {
    rows.push(['Stored', 'nothing: spool.store is "none"']);
  }
  repeat('backlog', rows.map(([name, value]) => ({ name, value })));
  hide('paused-title', !s.kept);
  const more = (s.paused_topics ?? s.paused.length) - Math.min(PAUSED, s.paused.length);
  const paused = s.paused.slice(0, PAUSED).map(p => ({ ...p, messages: number(p.messages) }));
  if (more > 0) paused.push({ topic: `${number(more)} more`, why: '', messages: '' });
  repeat('paused', paused);
  if (!s.kept) hide('paused-empty', true);
}

// === spend ===

function spend(s) {
  const { currency, priced, today, topics, budgets } = s.spend;
  show('spend-title', priced ? 'Spend today' : 'Billed today');
  show('spend', priced ? money(today.spend, '').trim() : number(today.messages));
  show('spend-unit', priced ? currency : 'messages');
  const tightest = budgets.reduce((a, b) => a && a.remaining_ratio <= b.remaining_ratio ? a : b, null);
  show('spend-budget', tightest ? `budget ${tightest.name}: ${tightest.remaining_ratio > 0 ? percent(tightest.remaining_ratio) + ' left' : 'used up'}` : '');
  show('spend-words', [priced && plural(today.messages, 'message', 'messages'), today.uncertain && `${number(today.uncertain)} uncertain`, !priced && 'no price configured'].filter(Boolean).join(', '));

  const several = new Set(topics.map(t => t.instance)).size > 1;
  const cost = t => priced ? money(t.spend, '').trim() : '';
  show('topics-spend', 'Spend, ' + currency);
  const row = t => ({ topic: t.topic, instance: several ? t.instance : '', messages: number(t.messages), uncertain: number(t.uncertain), spend: cost(t) });
  // The last row sums topics that do not fit here, and those that the sidecar itself counts as "other".
  const named = topics.filter(t => t.topic !== 'other').sort((a, b) => b.spend - a.spend || b.messages - a.messages);
  const rest = [...named.slice(TOPICS), ...topics.filter(t => t.topic === 'other')];
  const rows = named.slice(0, TOPICS).map(row);
  if (rest.length) {
    const sum = field => rest.reduce((sum, t) => sum + t[field], 0);
    rows.push({ ...row({ topic: 'other topics', messages: sum('messages'), uncertain: sum('uncertain'), spend: sum('spend') }), instance: '' });
  }
  repeat('topics', rows, tr => { tr.querySelector('[data-f=spend]').hidden = !priced; });
  $('topics-spend').hidden = !priced;
  show('topics-words', priced ? '' : 'No price is configured (billing.price_per_million).');

  repeat('budgets', budgets.map(b => {
    const figure = n => b.unit === 'messages' ? number(n) : money(n, '').trim();
    const unit = b.unit === 'messages' ? 'messages' : b.unit, share = b.limit > 0 ? b.used / b.limit : 1;
    const held = b.limit > 0 ? b.reserved / b.limit : 0, over = b.used + b.reserved >= b.limit;
    const then = b.on_exceed === 'refuse' ? (over ? 'messages are refused' : 'then messages are refused') : over ? 'no message is refused' : 'then only a warning';
    return { name: b.name, share, held,
      left: `${figure(Math.max(0, b.limit - b.used - b.reserved))} ${unit} left (${percent(Math.max(0, b.remaining_ratio))})`,
      words: `${figure(b.used)} used${b.scope === 'fleet' ? ' by the fleet' : ''}${b.reserved ? ` and ${figure(b.reserved)} reserved${b.scope === 'fleet' ? ' here' : ''}` : ''} of ${figure(b.limit)}; ${then}. Resets in ${until(b.resets_at, s.now)}, ${moment(b.resets_at, s.now)}.` };
  }), (row, b) => {
    const bar = row.querySelector('.bar');
    bar.setAttribute('aria-label', 'Budget ' + b.name);
    meter(bar, b.share, b.words, b.held);
  });
}

// === the rest ===

function provider(s) {
  const { key } = s, skew = Math.abs(s.clock_skew_seconds);
  const rows = [
    ['Key from', key.source], ['Key loaded', key.loaded ? ago(key.loaded, s.now) : 'not yet'],
    ['Key expires', key.expires ? (Date.parse(key.expires) > Date.parse(s.now) ? `in ${until(key.expires, s.now)} (${moment(key.expires, s.now)})` : `expired ${ago(key.expires, s.now)}`) : 'never'],
  ];
  if (key.refused) rows.push(['Refused new key', key.refused]);
  if (key.error) rows.push(['Error of its source', key.error]);
  const sum = column => history.sum(column), withheld = s.ceilings.reduce((sum, c) => sum + c.parked, 0);
  rows.push([history.whole ? 'Calls in 15 min' : 'Calls since the start', number(sum('calls'))],
    ['Calls not delivered', number(sum('calls') - sum('billable'))], ['Calls throttled', number(sum('pushed_back')) + (withheld ? `, ${plural(withheld, 'permit', 'permits')} withheld` : '')]);
  rows.push(['Last answer', ago(s.last_answer, s.now)], ['Last delivery', ago(s.last_delivered, s.now)],
    ['Clock skew', skew < 1 ? 'under 1 s' : `${span(skew)} ${s.clock_skew_seconds > 0 ? 'behind' : 'ahead'}`],
    ['Egress addresses', s.egress.length + (s.blocked.length ? `, probably blocked: ${s.blocked.slice(0, 4).join(', ')}` + (s.blocked.length > 4 ? ` and ${s.blocked.length - 4} more` : '') : ', none blocked')]);
  repeat('provider', rows.map(([name, value]) => ({ name, value })));
}

const MODES = { alone: 'Not shared', shared: 'Ceilings are shared', cut_off: 'Redis does not answer: using leased permits', closed: 'Redis does not answer, and all leases have ended' };

const regions = f => f.all_regions ? `, region ${f.region}, whose ceiling is shared with all regions` : f.region ? `, region ${f.region}` : ', all regions';

function fleet(f, now) {
  hide('fleet', !f);
  if (!f) return;
  const members = f.members ?? [];
  show('fleet-words', [MODES[f.mode] ?? f.mode, f.size && plural(f.size, 'sidecar', 'sidecars') + ` of account ${f.account}` + regions(f)].filter(Boolean).join('; '));
  hide('members-table', !members.length);
  repeat('members', members.slice(0, MEMBERS).map(m => ({ name: m.name, state: m.starved ? 'starved' : [m.region, m.egress_group].filter(Boolean).join(', '), share: number(m.share), used: number(m.used), waiting: number(m.waiting), seen: ago(m.seen, now) })));
  show('members-words', f.size > MEMBERS ? `and ${number(f.size - MEMBERS)} more: tollgate status --fleet` : '');
}

/** Which sidecar it is. */
function head(s) {
  show('sidecar', s.name);
  show('instances', (s.instances.length > 1 ? 'instances ' : 'instance ') + s.instances.slice(0, 3).join(', ') + (s.instances.length > 3 ? ` and ${s.instances.length - 3} more` : ''));
  show('region', s.region ? 'region ' + s.region : '');
  show('of-fleet', s.fleet ? `fleet ${s.fleet.account}` + (s.fleet.size ? ` of ${plural(s.fleet.size, 'sidecar', 'sidecars')}` : '') : '');
  show('endpoint', s.endpoint);
  show('uptime', 'up ' + age(s.started, s.now));
  show('release', `${s.version} (${s.commit.slice(0, 7)})`);
}

function everything(s) {
  latest = s;
  head(s);
  state(s.concerns, null, s.now);
  figures(s);
  draw(s);
  outcomes(s);
  backlog(s);
  spend(s);
  provider(s);
  fleet(s.fleet, s.now);
  repeat('errors', s.errors.map(e => ({ ...e, count: number(e.count), last: ago(e.last, s.now),
    words: e.request_id ? `${e.words} RequestId ${e.request_id}` : e.words })));
}

// === fetching ===

let failures = 0, lastGood = null, timer = null, polling = false;

function connected(s) {
  failures = 0;
  lastGood = new Date();
  $('link').dataset.link = 'on';
  show('link-words', 'Live, every second');
  $('stale').classList.remove('stale');
  hide('retry', true);
  hide('headline-more', true);
  hide('headline-do', true);
  everything(s);
}

function disconnected(why, wait) {
  $('link').dataset.link = 'off';
  show('link-words', 'Disconnected');
  $('stale').classList.add('stale');
  hide('retry', false);
  hide('headline-more', false);
  hide('headline-do', false);
  state([], lastGood ? `Disconnected since ${clock(lastGood)}` : 'Not connected: tollgate does not answer');
  show('headline-more', `${why} Next try in ${span(wait / SECOND)}.` + (lastGood ? ' The figures below are old.' : ''));
}

/** The status, or why there is none. */
async function fetchStatus() {
  try {
    const answer = await fetch('status.json' + history.query, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
    return answer.ok ? [await answer.json(), null] : [null, `tollgate answers with status ${answer.status}.`];
  } catch (error) {
    if (error.name === 'TimeoutError') return [null, 'tollgate does not answer in time.'];
    return [null, error instanceof SyntaxError ? 'The response cannot be read.' : 'tollgate cannot be reached.'];
  }
}

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  const [s, why] = await fetchStatus();
  polling = false;
  let wait = SECOND;
  if (why) {
    wait = Math.min(LONGEST, SECOND * 2 ** Math.min(10, failures));
    failures += 1;
  } else if (!history.take(s.started, s.history)) {
    // Another process, or its clock was set back: fetch the whole history again.
    wait = 0;
    samples = [];
  }
  if (!document.hidden) timer = setTimeout(poll, wait);
  if (why) disconnected(why, wait);
  else if (wait) connected(s);
}

chart = new Chart($('chart'), index => { cursor = index; legend(); });
$('zoom').addEventListener('click', event => {
  chart.fitted = !chart.fitted;
  event.currentTarget.setAttribute('aria-pressed', chart.fitted);
  if (latest) draw(latest);
});
$('retry').addEventListener('click', poll);
document.addEventListener('visibilitychange', () => { document.hidden ? clearTimeout(timer) : poll(); });
poll();
