"""One HTML page that asks a person about triplets with the keys 1, 2 and 0, and gives back a CSV of what was chosen."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from labref.cells.image import prepare
from training.measure.triplets import TripletSet

__all__ = ["write_sheet"]

SIDE = 224
"""Pixels at which crops are shown (the thesis showed 256 px crops)."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Which cell looks more like the middle one?</title>
<style>
 body{font:18px/1.4 system-ui,sans-serif;margin:1.5rem auto;max-width:60rem;padding:0 1rem;color:#1a1a1a;background:#fff}
 .cells{display:flex;gap:1rem;justify-content:center;align-items:center;flex-wrap:wrap;margin:1rem 0}
 figure{margin:0;text-align:center}img{width:SIDEpx;height:SIDEpx;border:4px solid #fff}
 .middle img{border-color:#1a4f8a}button{font:inherit;padding:.5rem 1.2rem;margin:.2rem;cursor:pointer}
 .chosen img{border-color:#2a7d2a}progress{width:100%}:focus-visible{outline:3px solid #1a4f8a}
</style>
<main>
<h1>Which cell looks more like the middle one?</h1>
<p>Keys: <kbd>1</kbd> left, <kbd>2</kbd> right, <kbd>0</kbd> neither resembles it, <kbd>←</kbd> back. Everything stays on this
computer until you press “Save”.</p>
<p><label>Your name or initials <input id="person" autocomplete="off"></label></p>
<progress id="bar" max="1" value="0" aria-label="answered"></progress> <p id="count" role="status"></p>
<div class="cells" id="cells">
 <figure id="f1"><img id="a" alt="alternative 1"><figcaption><button data-c="1">1</button></figcaption></figure>
 <figure class="middle"><img id="r" alt="the middle cell"><figcaption><button data-c="0">0: neither</button></figcaption></figure>
 <figure id="f2"><img id="b" alt="alternative 2"><figcaption><button data-c="2">2</button></figcaption></figure>
</div>
<p><button id="back">← Back</button> <button id="save">Save answers as CSV</button></p>
</main>
<script>
const SET=__SET__, IMAGES=__IMAGES__, TRIPLETS=__TRIPLETS__;
const key="labref-svomen-"+SET, el=id=>document.getElementById(id);
let kept={};try{kept=JSON.parse(localStorage.getItem(key)||"{}")}catch(e){}
let answers=kept.answers||{}, at=0;el("person").value=kept.person||"";
const keep=()=>{try{localStorage.setItem(key,JSON.stringify({answers,person:el("person").value}))}catch(e){}};
function next(){at=0;while(at<TRIPLETS.length&&TRIPLETS[at][0] in answers)at++;show()}
function show(){
 const n=Object.keys(answers).length;el("bar").value=n/TRIPLETS.length;
 el("count").textContent=n+" of "+TRIPLETS.length+" answered"+(at>=TRIPLETS.length?". Thank you: save your answers.":"");
 el("cells").style.visibility=at<TRIPLETS.length?"visible":"hidden";if(at>=TRIPLETS.length)return;
 const t=TRIPLETS[at];["r","a","b"].forEach((id,i)=>{el(id).src="data:image/jpeg;base64,"+IMAGES[t[i+1]]});
 const c=answers[t[0]];el("f1").className=c===1?"chosen":"";el("f2").className=c===2?"chosen":"";
}
function choose(c){if(at<TRIPLETS.length){answers[TRIPLETS[at][0]]=c;keep();at++;while(at<TRIPLETS.length&&TRIPLETS[at][0] in answers)at++;show()}}
document.addEventListener("keydown",e=>{if(e.target.id==="person"||e.ctrlKey||e.metaKey||e.altKey)return;
 if("012".includes(e.key)&&e.key.length===1)choose(+e.key);else if(e.key==="ArrowLeft"&&at>0){at--;show()}});
document.querySelectorAll("[data-c]").forEach(b=>b.onclick=()=>choose(+b.dataset.c));
el("back").onclick=()=>{if(at>0){at--;show()}};el("person").oninput=keep;
el("save").onclick=()=>{
 const who=el("person").value.trim();if(!who){el("person").focus();return}
 const rows=["set,triplet,person,choice",...Object.entries(answers).map(([n,c])=>[SET,n,'"'+who.replace(/"/g,'""')+'"',c].join(","))];
 const a=document.createElement("a");a.href=URL.createObjectURL(new Blob([rows.join("\\n")+"\\n"],{type:"text/csv"}));
 a.download="svomen-"+SET+"-"+who.replace(/[^A-Za-z0-9]+/g,"_")+".csv";a.click();
};
next();
</script></html>
"""


def write_sheet(
    triplets: TripletSet, tree: Path, out: Path, advance: Callable[[int], None] = lambda _: None
) -> tuple[Path, int]:
    """Write the page for `triplets`, whose images lie in `tree`; returns it and the number of images inside.

    The crops are shown as labref prepares them, without names or classes. Raises `UnreadableImageError` or OSError for
    an image that cannot be shown.
    """
    numbers: dict[str, int] = {}
    pictures: list[str] = []
    rows = []
    for number, triplet in enumerate(triplets.triplets):
        row = [number]
        for path in (triplet.reference, triplet.alternative_1, triplet.alternative_2):
            if path not in numbers:
                numbers[path] = len(pictures)
                pictures.append(_jpeg(tree / path))
            row.append(numbers[path])
        rows.append(row)
        advance(1)
    page = _PAGE.replace("SIDE", str(SIDE)).replace("__SET__", json.dumps(triplets.digest[:12]))
    page = page.replace("__IMAGES__", json.dumps(pictures)).replace("__TRIPLETS__", json.dumps(rows))
    out.write_text(page, encoding="utf-8")
    return out, len(pictures)


def _jpeg(path: Path) -> str:
    file = io.BytesIO()
    crop = prepare(path.read_bytes()).crop
    Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()
