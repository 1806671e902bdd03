// The last fifteen minutes, drawn by uPlot.

import { number } from './words.js';

const SECONDS = 900;
// In the order in which they are drawn: messages over calls.
const COLUMNS = ['calls', 'billable', 'pushed_back', 'uncertain'];
// Ceilings that are higher than so many times the traffic are not drawn: they would flatten it.
const APART = 4;

/** Whole seconds as the sidecar counted them. */
export class History {
  #started = null;
  #seconds = new Map();
  end = null;

  /** The query for the seconds that are not here yet. */
  get query() {
    return this.end === null ? '' : '?since=' + this.end;
  }

  /** False: this is another process or its clock was set back; ask for everything. */
  take(started, history) {
    const fits = this.#started === null || (this.#started === started && history.end >= this.end);
    if (!fits) {
      this.#seconds.clear();
      this.#started = this.end = null;
      return false;
    }
    this.#started = started;
    const first = history.end - history.billable.length + 1;
    history.billable.forEach((_, i) => this.#seconds.set(first + i, COLUMNS.map(c => history[c][i])));
    this.end = history.end;
    for (const second of this.#seconds.keys()) {
      if (second > this.end - SECONDS) break;
      this.#seconds.delete(second);
    }
    return true;
  }

  /** Seconds and columns for uPlot; null for seconds before the start. */
  columns() {
    const seconds = Array.from({ length: SECONDS }, (_, i) => this.end - SECONDS + 1 + i);
    const at = column => seconds.map(second => this.#seconds.get(second)?.[column] ?? null);
    return [seconds, ...COLUMNS.map((_, column) => at(column))];
  }

  sum(column) {
    let sum = 0;
    for (const second of this.#seconds.values()) sum += second[COLUMNS.indexOf(column)];
    return sum;
  }

  last(column) {
    return this.#seconds.get(this.end)?.[COLUMNS.indexOf(column)] ?? 0;
  }

  largest(column) {
    let largest = 0;
    for (const second of this.#seconds.values()) largest = Math.max(largest, second[COLUMNS.indexOf(column)]);
    return largest;
  }
}

const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LINES = [
  { key: 'calls', name: 'Calls', color: '--soft', width: 1 },
  { key: 'messages', name: 'Messages', color: '--use', width: 2, fill: '--use-soft' },
  { key: 'pushed', name: 'Throttled', color: '--bad', width: 2, dash: [2, 2] },
  { key: 'perhaps', name: 'Uncertain', color: '--odd', width: 2, dash: [6, 2, 2, 2] },
];
// Lines differ by their dashes as well as by their colour; page.css has the same for the legend.
const LIMITS = [
  { key: 'account', name: 'Account ceiling', color: '--limit', width: 1.5, dash: [10, 5] },
  { key: 'egress_ip', name: 'Egress ceiling', color: '--limit-2', width: 1.5, dash: [3, 4] },
  { key: 'plan', name: 'Bought TPS', color: '--ok', width: 1.5, dash: [14, 4, 3, 4] },
];

/** Lines that are nearly always 0 are drawn only where they are not. */
const bumps = column => column.map((n, i) => n === 0 && !column[i - 1] && !column[i + 1] ? null : n);

export class Chart {
  #plot;
  #host;
  #limits = {};
  #fitted = false;
  #onCursor;

  constructor(host, onCursor) {
    this.#host = host;
    this.#onCursor = onCursor;
    this.#plot = new uPlot(this.#options(), [[], ...LINES.map(() => []), ...LIMITS.map(() => [])], host);
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(host);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#plot.redraw(false, true));
  }

  #size() {
    const width = Math.max(200, this.#host.clientWidth);
    return { width, height: width < 600 ? 210 : 270 };
  }

  #options() {
    const line = ({ name, color: c, width, fill, dash }) => ({
      label: name, width, dash, stroke: () => color(c), fill: fill && (() => color(fill)), points: { show: false },
    });
    const axis = {
      stroke: () => color('--soft'), font: '12px system-ui, sans-serif',
      grid: { stroke: () => color('--line'), width: 1 }, ticks: { stroke: () => color('--line'), width: 1, size: 4 },
    };
    const hour = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
    return {
      ...this.#size(),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true }, y: { range: (_, __, max) => [0, this.#top(max)] } },
      axes: [
        { ...axis, size: 28, space: 70, incrs: [60, 120, 180, 300], values: (_, seconds) => seconds.map(s => hour.format(new Date(s * 1000))) },
        { ...axis, size: 56, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 250, 500, 1000, 2000, 2500, 5000, 10000, 20000, 50000, 100000], values: (_, ticks) => ticks.map(number) },
      ],
      series: [{}, ...LINES.map(line), ...LIMITS.map(line)],
      hooks: { setCursor: [plot => this.#onCursor(plot.cursor.idx ?? null)] },
    };
  }

  #top(max) {
    return Math.max(10, 1.08 * (max ?? 0));
  }

  /** Whether the scale follows the traffic even where the ceilings are far above it. */
  set fitted(fitted) {
    this.#fitted = fitted;
  }

  get fitted() {
    return this.#fitted;
  }

  /** Ceilings that are too far above to be drawn. */
  show(columns, limits) {
    const numbers = columns[1].filter(n => n !== null);
    const busiest = Math.max(10, ...numbers);
    const tightest = Math.min(...Object.values(limits).filter(n => n !== null));
    const highest = this.#fitted ? busiest * 1.2 : Math.max(busiest, Number.isFinite(tightest) ? tightest : 0) * APART;
    const drawn = LIMITS.map(({ key }) => (limits[key] ?? Infinity) <= highest ? limits[key] : null);
    this.#limits = limits;
    const [seconds, calls, messages, ...rare] = columns;
    this.#plot.setData([seconds, calls, messages, ...rare.map(bumps), ...drawn.map(n => seconds.map(() => n))]);
    return LIMITS.filter(({ key }, i) => limits[key] !== null && drawn[i] === null).map(({ name }) => name);
  }

  /** The legend's values, of the second under the cursor, else of the last. */
  legend(columns, index) {
    const at = index ?? columns[0].length - 1;
    const value = n => n === null || n === undefined ? '–' : number(n);
    const lines = LINES.map(({ key, name }, i) => ({ key, name, value: value(columns[i + 1][at]) }));
    const limits = LIMITS.filter(({ key }) => this.#limits[key] !== null)
      .map(({ key, name }) => ({ key, name, value: value(this.#limits[key]) }));
    return [...lines, ...limits];
  }
}
