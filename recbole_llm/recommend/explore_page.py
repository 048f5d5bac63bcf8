"""The page of ``recbole-llm explore``, a Streamlit script: it lays out what the explorer says, and decides nothing."""

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from recbole_llm.errors import RecBoleLLMError
from recbole_llm.recommend.explore import shown_explorer
from recbole_llm.recommend.explorer import Explorer, Shown

# Names that a menu holds; where there are more, a search comes before it.
MENU = 2000
# Height of a row of a table, in pixels.
ROW = 35
PARTS = {
    "all": "all interactions",
    "test": "what precedes the test target",
    "valid": "what precedes the validation target",
}


def main() -> None:
    """Lay out the page."""
    explorer = shown_explorer()
    st.set_page_config(page_title="recbole-llm explore", layout="wide")
    title, about = explorer.describe()
    st.subheader(title, anchor=False)
    st.caption(about)
    if explorer.why_no_titles:
        st.info(f"Items are shown by their ids: {explorer.why_no_titles}")
    with st.sidebar:
        source = st.radio("Recommend to", ["a user of the dataset", "a history of my own"])
        who = st.container()
        k = st.slider("Items in a list", 1, 50, 10)
        mask = st.checkbox("Leave out items of the history", bool(explorer.recommender.config["mask_history"]))
    try:
        if source == "a user of the dataset":
            history, found = of_user(explorer, who, k, mask)
        else:
            history, found = of_history(explorer, k, mask)
        if history:
            similar(explorer, list(dict.fromkeys(row.item for row in (*found, *reversed(history)))), k)
    except RecBoleLLMError as error:
        st.error(str(error))


def of_user(explorer: Explorer, menu: DeltaGenerator, k: int, mask: bool) -> tuple[list[Shown], list[Shown]]:
    """Lay out a user's history and list, and return both; the choice of the user goes into the menu."""
    with menu:
        search = st.text_input("Find a user") if len(explorer.users) > MENU else ""
        user = st.selectbox("User", explorer.find_users(search, MENU), filter_mode="contains")
        part = st.selectbox("From", list(PARTS), format_func=PARTS.__getitem__)
    if user is None:
        st.info(f"No user has an id with {search!r} in it.")
        return [], []
    lists = explorer.recommend_user(user, k, part, mask)
    note = ""
    if lists.target is not None:
        rank = lists.target_rank
        place = f"rank {rank}" if rank else f"not among the first {k}"
        note = f"The user's next item was {lists.target.title} [{lists.target.item}]: {place}."
    beside(lists.history, lists.items, note)
    return lists.history, lists.items


def of_history(explorer: Explorer, k: int, mask: bool) -> tuple[list[Shown], list[Shown]]:
    """Lay out a history that is put together here and its list, and return both."""
    chosen: list[str] = st.session_state.get("chosen", [])
    search = st.text_input("Find items by title or id") if len(explorer.items) > MENU else ""
    options = list(dict.fromkeys([*chosen, *explorer.find_items(search, MENU)]))
    chosen = st.multiselect(
        "History, oldest first",
        options,
        key="chosen",
        format_func=explorer.label,
        filter_mode="contains",
        placeholder="Type a title or an id",
    )
    if not chosen:
        st.info("Choose at least one item: the list appears here.")
        return [], []
    history = [Shown(item, explorer.title(item)) for item in chosen]
    found = explorer.recommend(chosen, k, mask)
    beside(history, found)
    return history, found


def beside(history: list[Shown], found: list[Shown], note: str = "") -> None:
    """Lay out a list and its history beside each other."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown("##### Recommendations")
        if note:
            st.text(note)
        table(found, "score")
        st.caption("Scores compare the items of one list; they are not probabilities.")
    with right:
        st.markdown(f"##### History ({len(history)} items, newest first)")
        table(history[::-1], visible=max(10, len(found)))


def similar(explorer: Explorer, first: list[str], k: int) -> None:
    """Lay out the items that are similar to one that the user chooses; those on the page come first."""
    st.markdown("##### Similar items")
    search = st.text_input("Find an item by title or id") if len(explorer.items) > MENU else ""
    options = explorer.find_items(search, MENU) if search else [*first, *explorer.find_items("", MENU)]
    item = st.selectbox("Similar to", list(dict.fromkeys(options)), format_func=explorer.label, filter_mode="contains")
    if item is None:
        st.info(f"No item has {search!r} in its title or id.")
        return
    found, what_by = explorer.similar(item, k)
    table(found, "similarity")
    st.caption(f"Similarity: {what_by}.")


def table(rows: list[Shown], score: str = "", visible: int = 50) -> None:
    """Lay out rows with their number, and with their scores if there is a name for them; some visible at once."""
    frame = pd.DataFrame({"title": [row.title for row in rows], "id": [row.item for row in rows]})
    columns = {"title": st.column_config.TextColumn(width="large"), "id": st.column_config.TextColumn(width="small")}
    if score:
        frame[score] = [row.score for row in rows]
        columns[score] = st.column_config.NumberColumn(format="%.4f", width="small")
    frame.index = pd.RangeIndex(1, len(rows) + 1, name="rank" if score else "no.")
    st.dataframe(frame, column_config=columns, height=ROW * (min(len(rows), visible) + 1) + 3)


if __name__ == "__main__":
    main()
