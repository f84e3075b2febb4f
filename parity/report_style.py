"""The report's style sheet."""

STYLE = """
:root { --ink: #1c2430; --soft: #5d6b7e; --line: #dfe5ec; --ok: #16794c; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
header { border-radius: 12px; color: #fff; padding: 20px 26px; }
header.pass { background: linear-gradient(120deg, #16794c, #1f9d66); }
header.fail { background: linear-gradient(120deg, #8c1d18, #c7392f); }
header h1 { margin: 0; font-size: 40px; letter-spacing: .04em; line-height: 1.15; }
header p { margin: 4px 0 0; font-size: 16px; }
header .kicker { margin: 0; font-size: 12px; letter-spacing: .12em; text-transform: uppercase; }
header .other { font-size: 13px; opacity: .85; }
h2 { margin: 34px 0 6px; font-size: 19px; }
h3 { margin: 20px 0 4px; font-size: 15px; }
p { margin: 4px 0 10px; color: var(--soft); max-width: 86ch; }
header p { color: inherit; max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px;
  margin-top: 14px; }
.cards div { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; }
.cards b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: 12.5px; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; font-size: 13px; }
th { color: var(--soft); font-weight: 600; font-size: 12px; text-align: left; }
th, td { padding: 6px 9px; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child > th { border-top: 0; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.section { color: var(--soft); }
td.hash { font: 11px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; word-break: break-all; }
.facts { margin: 8px 0 14px; }
.facts th, .facts td:first-child { width: 230px; }
i { font-style: normal; font-weight: 700; }
.ok { color: var(--ok); }
.bad { color: var(--bad); }
.why { color: var(--bad); margin: 2px 0 0; }
summary { cursor: pointer; }
details[open] summary { font-weight: 600; margin-bottom: 6px; }
.records { font-size: 12px; background: #fafbfd; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; }
figcaption { font-size: 12.5px; margin-bottom: 8px; }
.row { display: flex; gap: 8px; }
.row div { flex: 1 1 0; min-width: 0; }
.row img { width: 100%; display: block; border-radius: 6px; image-rendering: pixelated; }
.row span { display: block; font-size: 11.5px; color: var(--soft); margin-top: 3px; }
@media (max-width: 640px) { .pictures { grid-template-columns: 1fr; } }
"""
