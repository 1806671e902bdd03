// The last fifteen minutes, drawn by uPlot.

import { clock, number } from './words.js';

const SECONDS = 900;
// A chart of less would be a few dots: the first minute grows within this.
const FIRST = 60;
const COLUMNS = ['calls', 'pushed_back', 'uncertain', 'backlog', 'billable', 'stored', 'refused', 'failed'];
// The lines of messages, in the order in which they are drawn: over the backlog.
export const COUNTED = ['billable', 'stored', 'refused', 'failed'];
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

  /** How many seconds are known. */
  get length() {
    return this.#seconds.size;
  }

  /** Whether all that are remembered are known: else the sidecar is younger. */
  get whole() {
    return this.length >= SECONDS;
  }

  /** Seconds, backlog and lines for uPlot, from the start on; null for seconds before it, of which there are some in the first minute. */
  columns() {
    const length = Math.max(FIRST, this.length);
    const seconds = Array.from({ length }, (_, i) => this.end - length + 1 + i);
    const at = column => seconds.map(second => this.#seconds.get(second)?.[COLUMNS.indexOf(column)] ?? null);
    return [seconds, at('backlog'), ...COUNTED.map(at)];
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
const BACKLOG = { key: 'backlog', name: 'Backlog', color: '--soft', width: 1, fill: '--backlog', scale: 'backlog' };
const LINES = [
  { key: 'delivered', name: 'Delivered (message TPS)', color: '--use', width: 2, fill: '--use-soft' },
  { key: 'stored', name: 'Stored', color: '--odd', width: 2, dash: [6, 2, 2, 2] },
  { key: 'refused', name: 'Refused', color: '--refused', width: 2, dash: [6, 3] },
  { key: 'failed', name: 'Failed', color: '--bad', width: 2, dash: [2, 2] },
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
    this.#plot = new uPlot(this.#options(), [[], [], ...LINES.map(() => []), ...LIMITS.map(() => [])], host);
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(host);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#plot.redraw(false, true));
  }

  #size() {
    const width = Math.max(200, this.#host.clientWidth);
    return { width, height: width < 600 ? 210 : 270 };
  }

  #options() {
    const line = ({ name, color: c, width, fill, dash, scale = 'y' }) => ({
      label: name, scale, width, dash, stroke: () => color(c), fill: fill && (() => color(fill)), points: { show: false },
    });
    const axis = {
      stroke: () => color('--soft'), font: '12px system-ui, sans-serif',
      grid: { stroke: () => color('--line'), width: 1 }, ticks: { stroke: () => color('--line'), width: 1, size: 4 },
    };
    const hour = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
    const moment = (second, step) => step < 60 ? clock(second * 1000) : hour.format(new Date(second * 1000));
    const counts = { ...axis, size: 56, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 250, 500, 1000, 2000, 2500, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000], values: (_, ticks) => ticks.map(number) };
    return {
      ...this.#size(),
      legend: { show: false },
      // Room for half of the last label of the time.
      padding: [null, 30, null, null],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true }, y: { range: (_, __, max) => [0, this.#top(max)] }, backlog: { range: (_, __, max) => [0, this.#top(max)] } },
      axes: [
        { ...axis, size: 28, space: 74, incrs: [10, 15, 30, 60, 120, 180, 300], values: (_, seconds, __, ___, step) => seconds.map(second => moment(second, step)) },
        counts,
        { ...counts, scale: 'backlog', side: 1, grid: { show: false }, label: 'Backlog', labelSize: 18, labelFont: axis.font, labelGap: 0 },
      ],
      series: [{}, line(BACKLOG), ...LINES.map(line), ...LIMITS.map(line)],
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

  /** Draws these; returns the ceilings that are too far above to be drawn. */
  show(columns, limits) {
    const [seconds, backlog, delivered, ...rare] = columns;
    const busiest = Math.max(10, ...COUNTED.flatMap((_, i) => columns[2 + i].filter(n => n !== null)));
    const tightest = Math.min(...Object.values(limits).filter(n => n !== null));
    const highest = this.#fitted ? busiest * 1.2 : Math.max(busiest, Number.isFinite(tightest) ? tightest : 0) * APART;
    const drawn = LIMITS.map(({ key }) => (limits[key] ?? Infinity) <= highest ? limits[key] : null);
    this.#limits = limits;
    // Without a backlog its axis would only narrow the chart.
    const axis = this.#plot.axes.at(-1), shown = backlog.some(n => n > 0);
    if (axis.show !== shown) {
      axis.show = shown;
      this.#plot.redraw(false, true);
    }
    this.#plot.setData([seconds, shown ? backlog : seconds.map(() => null), delivered, ...rare.map(bumps), ...drawn.map(n => seconds.map(() => n))]);
    return LIMITS.filter(({ key }, i) => limits[key] !== null && drawn[i] === null).map(({ name }) => name);
  }

  /** The legend's values, of the second under the cursor, else of the last. */
  legend(columns, index) {
    const at = index ?? columns[0].length - 1;
    const value = n => n === null || n === undefined ? '–' : number(n);
    const lines = LINES.map(({ key, name }, i) => ({ key, name, value: value(columns[i + 2][at]) }));
    const backlog = { key: BACKLOG.key, name: BACKLOG.name, value: value(columns[1][at]) };
    const limits = LIMITS.filter(({ key }) => this.#limits[key] !== null)
      .map(({ key, name }) => ({ key, name, value: value(this.#limits[key]) }));
    return [...lines, backlog, ...limits];
  }
}
