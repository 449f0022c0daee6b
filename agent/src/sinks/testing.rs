//! What the tests of several sinks share.

use std::sync::Arc;

use crate::record::{Batch, Class, IoStream, Line, Origin, Resource, Stream};

/// 2026-11-21T05:00:00Z.
pub(crate) const FIVE_O_CLOCK: u64 = 1_795_237_200_000_000_000;

/// The stdout of a container.
pub(crate) fn pod_stream(namespace: &str, pod: &str, container: &str) -> Arc<Stream> {
    stream(Class::Pod, Origin::Stdio(IoStream::Stdout), namespace, pod, container)
}

/// A stream of a container.
pub(crate) fn stream(class: Class, origin: Origin, namespace: &str, pod: &str, container: &str) -> Arc<Stream> {
    let resource = Resource {
        namespace: Some(namespace.into()),
        pod: Some(pod.into()),
        container_name: Some(container.into()),
        ..Resource::default()
    };
    Arc::new(Stream { key: "test/stream".into(), class, origin, resource: Arc::new(resource), account: Arc::default() })
}

/// A batch of lines, the first at `position`.
pub(crate) fn batch(stream: &Arc<Stream>, position: u64, bodies: &[&[u8]]) -> Batch {
    let mut data = Vec::new();
    let mut lines = Vec::new();
    for body in bodies {
        let start = data.len();
        data.extend_from_slice(body);
        lines.push(Line {
            time_unix_nano: FIVE_O_CLOCK,
            observed_time_unix_nano: FIVE_O_CLOCK,
            body: start..data.len(),
            position: position + start as u64,
            span: body.len() as u64 + 1,
            ..Line::default()
        });
        data.push(b'\n');
    }
    Batch { stream: Arc::clone(stream), data: data.into(), lines }
}
