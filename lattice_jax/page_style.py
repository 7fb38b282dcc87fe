"""The style sheet of dashboards and reports, for light and dark screens, wide and narrow ones."""

_LIGHT = """--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--muted:#5c6670;--line:#d9dee4;--go:#1a7f37;
--stop:#c0262d;--wait:#8a5a00;--goback:#dcf4e2;--stopback:#fde3e3;--waitback:#fdf0d0;--control:#57606a;
--treatment:#2f5fd0;--band:#2f5fd033"""
_DARK = """--page:#12151a;--card:#1b2027;--ink:#e6eaef;--muted:#98a3af;--line:#343c46;
--go:#5fd07f;--stop:#ff8a87;--wait:#f0bd4f;--goback:#12351d;--stopback:#471b1d;--waitback:#3d2f0c;--control:#aab4bf;
--treatment:#86a8ff;--band:#86a8ff33"""


def themed(light: str, dark: str) -> str:
  """Rules that give the whole page these variables: as the screen asks, or as `data-theme` on its root says."""
  return (
    f":root{{color-scheme:light dark;{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    f":root[data-theme=light]{{color-scheme:light;{light}}}\n:root[data-theme=dark]{{color-scheme:dark;{dark}}}\n")


STYLE = themed(_LIGHT, _DARK) + """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:20px 16px 40px}
header{display:flex;justify-content:space-between;gap:16px;align-items:flex-start;flex-wrap:wrap}
h1{margin:0;font-size:24px;overflow-wrap:anywhere}
h2{margin:0 0 6px;font-size:16px}
p{margin:4px 0 8px}
header p{margin:2px 0 0}
.muted{color:var(--muted)}
.chip{display:inline-block;padding:2px 10px;border-radius:12px;font-weight:600;white-space:nowrap;margin-left:6px;
background:var(--waitback);color:var(--wait)}
td .chip{margin-left:0}
.chip.go{background:var(--goback);color:var(--go)}
.chip.stop{background:var(--stopback);color:var(--stop)}
.chip.no-stop,.chip.reported{background:none;color:var(--muted);padding-left:0}
.stages{display:flex;flex-wrap:wrap;gap:6px;list-style:none;margin:16px 0;padding:0}
.stages li{flex:1 1 100px;background:var(--card);border:1px solid var(--line);border-top:4px solid var(--line);
border-radius:6px;padding:6px 10px}
.stages b,.stages span{display:block}
.stages span{color:var(--muted);font-size:12px}
.stages .passed{border-top-color:var(--go)}
.stages .here{border-color:var(--wait);background:var(--waitback)}
.stages .failed{border-color:var(--stop);background:var(--stopback)}
.stages .ahead b{color:var(--muted)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:8px;margin-bottom:12px}
.figures div{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px 12px}
.figures b{display:block;font-size:20px}
.figures span{font-size:12px}
section{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:12px 14px;margin-bottom:12px;
min-width:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:0 12px}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th{text-align:left;color:var(--muted);font-weight:500;font-size:12px}
th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:middle}
tbody tr:last-child td{border-bottom:0}
.number{text-align:right}
.number,.whole{white-space:nowrap}
.gates td:first-child{min-width:130px}
.reason{min-width:260px}
.bar{width:36%;min-width:160px}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:6px}
.dot.control{background:var(--control)}
.dot.treatment{background:var(--treatment)}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--muted);font-size:12px;font-family:inherit}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(260px,100%),1fr));gap:6px 16px;margin:8px 0 0}
h3{margin:18px 0 4px;font-size:14px}
code{background:var(--page);padding:0 3px;overflow-wrap:anywhere}
.report p,.report li{max-width:70em}
.report section{margin-top:12px}
.report table{display:block;overflow-x:auto;width:auto;margin:8px 0;font-size:13px}
.report img{display:block;max-width:100%;margin:8px 0;background:#fff;border-radius:4px}
dt{color:var(--muted);font-size:12px}
dd{margin:0;overflow-wrap:anywhere}
"""
