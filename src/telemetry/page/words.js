// Formats of figures and times. Ages are by the sidecar's clock, not the browser's.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const time = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const short = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const day = new Intl.DateTimeFormat('en', { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });

export const number = n => whole.format(n);
/** A rate: small ones are not rounded away. */
export const rate = n => (n > 0 && n < 10 ? tenth : whole).format(n);
export const percent = share => whole.format(100 * share) + ' %';
/** A share is 100 % only if nothing is missing. */
export const share = ratio => tenth.format(Math.floor(1000 * ratio) / 10) + ' %';
export const plural = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

export function money(amount, currency) {
  // A message costs a few millionths: cents alone would show nothing for a long time.
  const digits = amount !== 0 && Math.abs(amount) < 1 ? 4 : 2;
  return amount.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits }) + ' ' + currency;
}

export function span(seconds) {
  if (seconds > 0 && seconds < .001) return 'under 1 ms';
  if (seconds < 1) return Math.round(seconds * 1000) + ' ms';
  if (seconds < 10) return tenth.format(seconds) + ' s';
  if (seconds < 120) return Math.round(seconds) + ' s';
  if (seconds < 7200) return Math.round(seconds / 60) + ' min';
  if (seconds < 172800) return Math.round(seconds / 3600) + ' h';
  return Math.round(seconds / 86400) + ' days';
}

const between = (from, to) => Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000);
/** Time since then, in whole seconds: milliseconds would change all the time. */
export const age = (at, now) => { const s = between(at, now); return s < 1 ? 'under 1 s' : span(s < 10 ? Math.floor(s) : s); };
export const ago = (at, now) => at ? age(at, now) + ' ago' : 'never';
export const until = (at, now) => span(Math.ceil(between(now, at)));
export const clock = at => time.format(new Date(at));
/** Today's moments need no day. */
export const moment = (at, now) => new Date(at).toDateString() === new Date(now).toDateString() ? short.format(new Date(at)) : day.format(new Date(at));
export const bytes = n => n < 1024 ? number(n) + ' B' : n < 1048576 ? rate(n / 1024) + ' KiB' : rate(n / 1048576) + ' MiB';
