"""An address of every page of the explorer, over the hostile database."""

from __future__ import annotations

from urllib.parse import quote

from tests.explorer.conftest import HOSTILE

F, G = "a/sae/5", "a/sae/7"
_ANY = quote(HOSTILE[2])

PAGES = {
    "home": "/",
    "home-page": "/?order=densest&offset=20",
    "search": f"/search?q={_ANY}",
    "search-empty": "/search",
    "feature": f"/feature/{F}",
    "feature-filtered": f"/feature/{F}?where=topic+IS+NOT+NULL&per_document=1&distinct=1&min=0.5",
    "feature-sample": f"/feature/{F}?show=sample&by=quantile",
    "feature-silent": f"/feature/{F}?show=silent",
    "feature-dead": "/feature/a/sae/3",
    "feature-embedded": f"/feature/{F}?embed=1",
    "feature-coactive": f"/feature/{F}?panel=coactive-token",
    "feature-documents": f"/feature/{F}?panel=coactive-document",
    "feature-encoder": f"/feature/{F}?panel=near-encoder",
    "feature-nearest": f"/feature/{F}?panel=nearest",
    "feature-range": f"/feature/{F}?panel=range",
    "feature-places": f"/feature/{F}?panel=places",
    "feature-groups": f"/feature/{F}?panel=groups&group=topic",
    "text-empty": "/text",
    "text-context": "/text?context=2",
    "text-token": "/text?context=2&at=3&hide_bos=1",
    "compare": f"/compare?a={F}&b={G}&k=1",
    "compare-saes": "/compare?a=a/sae&b=it%27s",
    "contrast": "/contrast?a=topic+%3D+%27%3Cb%3E%27&k=3",
    "contrast-each": "/contrast?each=topic&k=2",
    "contrast-on": f"/contrast?a=document_id+%3C+2&on={F}&covariate=length&k=2",
    "contrast-empty": "/contrast",
    "find": f"/find?any={F},{G}&unit=context&none=a/sae/9&k=3",
    "sql": "/sql?q=FROM+tokens+JOIN+vocabulary+USING+(token_id)",
    "sql-refused": f"/sql?q={_ANY}",
    "sql-schema": "/sql?panel=schema",
    "steer": "/steer",
    "steer-refused": f"/steer?prompt={_ANY}&set=a%2Fsae%2F5%3D2x&set={_ANY}",
    "map": "/map?sae=it%27s",
    "map-canvas": "/map?sae=a/sae&draw=canvas&find=script",
    "map-data": "/map?sae=a/sae&panel=map",
    "monitors": "/monitors",
    "monitors-rule": f"/monitors?rule={quote(f'{F} > 0.5')}&by=topic",
    "monitors-refused": f"/monitors?rule={_ANY}",
    "not-found": f"/feature/{_ANY}/1",
    "unknown": f"/{_ANY}",
}
"""By name. What is hostile in the address is shown too."""

REFUSED = {"steer-refused": 400, "not-found": 404, "unknown": 404}
