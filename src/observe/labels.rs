//! What a thread says about itself in the histories of all allocators.

use std::cell::RefCell;
use std::sync::Arc;

#[derive(Default)]
struct Labels {
    compile_contexts: Vec<Arc<str>>,
    user_metadata: Option<Arc<str>>,
}

thread_local! {
    static LABELS: RefCell<Labels> = RefCell::default();
}

/// Reads or changes the thread's labels; `None` while the thread ends.
fn with<T>(body: impl FnOnce(&mut Labels) -> T) -> Option<T> {
    LABELS.try_with(|labels| body(&mut labels.borrow_mut())).ok()
}

/// Names what this thread compiles: its events have that as `compile_context` until
/// [`pop_compile_context`]. Contexts nest; the innermost counts.
///
/// ```
/// use plugalloc::observe::{pop_compile_context, push_compile_context};
/// push_compile_context("forward of layer 3");
/// // what is allocated here carries it
/// pop_compile_context();
/// ```
pub fn push_compile_context(name: &str) {
    with(|labels| labels.compile_contexts.push(name.into()));
}

/// Ends the innermost [`push_compile_context`] of this thread; nothing where there is none.
pub fn pop_compile_context() {
    with(|labels| labels.compile_contexts.pop());
}

/// Text for this thread's events from now on; empty for none.
///
/// ```
/// use plugalloc::observe::{set_user_metadata, user_metadata};
/// set_user_metadata("request 7");
/// assert_eq!(user_metadata(), "request 7");
/// ```
pub fn set_user_metadata(text: &str) {
    with(|labels| labels.user_metadata = (!text.is_empty()).then(|| text.into()));
}

/// The text that was set; empty where none was.
pub fn user_metadata() -> String {
    let text = with(|labels| labels.user_metadata.clone()).flatten();
    text.map_or_else(String::new, |text| text.to_string())
}

/// The innermost compile context and the text of this thread.
pub(crate) fn current() -> (Option<Arc<str>>, Option<Arc<str>>) {
    let both = |labels: &mut Labels| {
        (labels.compile_contexts.last().cloned(), labels.user_metadata.clone())
    };
    with(both).unwrap_or_default()
}
