"""RecBole's downloads of public datasets, with errors that say what to do instead."""

import zipfile
from logging import Logger
from pathlib import Path

from recbole.utils.url import decide_download, download_url, extract_zip, rename_atomic_files

from recbole_llm.errors import DataError


def download(name: str, url: str | None, folder: Path, logger: Logger) -> None:
    """Download a dataset's atomic files into ``folder``.

    Raises
    ------
    DataError
        Where RecBole offers no download, the user declines it, or it fails.
    """
    advice = (
        f"Put the atomic files into {str(folder)!r} ({name}.inter, and .item for item text), or point data_path at "
        "the folder that holds them."
    )
    if url is None:
        raise DataError(f"There is no folder {str(folder)!r} and RecBole offers no download for {name!r}. {advice}")
    try:
        logger.info(f"Downloading {name} from {url}.")
        if not decide_download(url):
            raise DataError(f"The download of {name!r} was declined. {advice}")
        folder.mkdir(parents=True, exist_ok=True)
        archive = Path(download_url(url, str(folder)))
        try:
            extract_zip(str(archive), str(folder))
        finally:
            archive.unlink()
        rename_atomic_files(str(folder), archive.stem, name)
    # RecBole asks on the terminal before a large download, and turns every interruption into a RuntimeError.
    except (OSError, EOFError, RuntimeError, TypeError, zipfile.BadZipFile) as error:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        reason = error or type(error).__name__
        raise DataError(f"{name!r} cannot be downloaded from {url}: {reason}. {advice}") from error
