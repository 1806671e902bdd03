//! A client that speaks TLS, and may show a certificate.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use rcgen::{Certificate, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http::{Answer, BOUND, parse};

/// Whom it trusts, and what it shows.
#[derive(Clone)]
pub struct TlsClient(Arc<ClientConfig>);

/// A connection of it.
pub struct TlsConnection(TlsStream<TcpStream>);

impl TlsClient {
    pub fn new(authority: &str, shows: Option<&(Certificate, KeyPair)>) -> Self {
        Self::speaking(ALL_VERSIONS, authority, shows)
    }

    pub fn speaking(
        versions: &[&'static SupportedProtocolVersion],
        authority: &str,
        shows: Option<&(Certificate, KeyPair)>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Self(Arc::new(match shows {
            Some((certificate, key)) => {
                let key: PrivateKeyDer<'_> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
                config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
            None => config.with_no_client_auth(),
        }))
    }

    pub async fn connect(&self, address: &str) -> io::Result<TlsConnection> {
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await.map(TlsConnection)
        };
        timeout(BOUND, connect).await.expect("a handshake in time")
    }

    /// Posts one byte to a topic, on a connection of its own. An error where there is no answer.
    pub async fn publish(
        &self,
        address: &str,
        topic: &str,
        token: Option<&str>,
    ) -> io::Result<Answer> {
        self.connect(address).await?.publish(topic, token).await
    }
}

impl TlsConnection {
    /// Posts one byte to a topic, and keeps the connection.
    pub async fn publish(&mut self, topic: &str, token: Option<&str>) -> io::Result<Answer> {
        let mut head =
            format!("POST /publish/{topic} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n");
        if let Some(token) = token {
            write!(head, "authorization: Bearer {token}\r\n").unwrap();
        }
        let exchange = async {
            self.0.write_all(format!("{head}\r\nx").as_bytes()).await?;
            let mut bytes = Vec::new();
            loop {
                if self.0.read_buf(&mut bytes).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let Some(answer) = parse(&bytes) else { continue };
                if answer.body.len() >= answer.header("content-length").parse().unwrap() {
                    return Ok(answer);
                }
            }
        };
        timeout(BOUND, exchange).await.expect("an answer in time")
    }
}
