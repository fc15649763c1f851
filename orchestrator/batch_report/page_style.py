"""The page's style sheet: light and dark, and printable."""

STYLE = """
:root { --ink: #1a202c; --pale: #5a6778; --paper: #ffffff; --line: #d9e0e8; --tint: #f4f7fa;
  --bar: #9db8d2; --hit: #2b6cb0; --bad: #b83232; --heat: 43, 108, 176; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --pale: #9aa7b6; --paper: #14181d;
  --line: #333c47; --tint: #1c2229; --bar: #45617d; --hit: #7db3e8; --bad: #f08a8a;
  --heat: 110, 170, 230; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } a { color: var(--hit); }
.pale, figcaption, th { color: var(--pale); } .bad { color: var(--bad); }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }
.card { background: var(--tint); border: 1px solid var(--line); border-radius: 8px;
  padding: .5rem .9rem; min-width: 6.5rem; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: middle; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
th { font-weight: 500; white-space: nowrap; }
.confusion th, .confusion td { padding: .25rem .5rem; text-align: right; border: 0;
  max-width: 9rem; } .confusion td.own { outline: 1px solid var(--hit); outline-offset: -1px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
figure { margin: .5rem 0; } figcaption { font-size: .85rem; max-width: 20rem; }
section { border-top: 1px solid var(--line); margin-top: 1.6rem; }
.bar { fill: var(--bar); } .hit { fill: var(--hit); } .dot { fill: var(--hit); }
.mark { stroke: var(--hit); stroke-width: 2; } .axis { stroke: var(--pale); }
.grid { stroke: var(--line); } svg text { fill: var(--pale); font: 11px system-ui, sans-serif; }
@media print { body { margin: 0; max-width: none; } section { break-inside: avoid; } }
"""
