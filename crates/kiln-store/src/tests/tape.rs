//! A recorder of what reaches the disk, and when.

use std::fs::File;
use std::path::Path;

use crate::disk::Site;

pub(crate) fn sync(_site: Site, _file: &File, _path: &Path) -> bool {
    false
}
pub(crate) fn sync_dir(_site: Site, _path: &Path) -> bool {
    false
}
pub(crate) fn sync_all(_site: Site, _path: &Path) -> bool {
    false
}
pub(crate) fn wrote(_file: &File, _path: &Path) {}
pub(crate) fn named(_path: &Path) {}
pub(crate) fn unnamed(_path: &Path) {}
pub(crate) fn made(_path: &Path) {}
