"""The studio: a page in the browser to generate, paint on photos, and compare, with Gradio (extra `demo`).

- `__main__.py`: the command, `maskgit-studio`
- `demo.py`: trains the demo's model, and shows how far it is
- `engine.py`: runs one job of `maskgit_pt.sample` at a time, and tells what can be seen of it
- `history.py`: the folder in which everything that was made is kept
- `drafts.py`: what stands on the edit tab, for when the page is reloaded
- `pictures.py`: what the page draws
- `controls.py`: class search and settings of samplers
- `page.py`, `edit_tab.py`: the tabs
- `view.py`: what the tabs show of a job
"""
