//! The Cluster service: the membership, read and changed (etcd: v3rpc/member.go).
//!
//! Changes are carried out by the member behind it, which also holds the rules of safe reconfiguration; here the peer
//! URLs are checked and answers shaped. Headers have no revision: the membership is not part of the store's history.

use std::sync::Arc;

use kvstore::{
    ApplyError,
    membership::Member,
    pb::etcdserverpb::{
        Member as MemberMessage, MemberAddRequest, MemberAddResponse, MemberListRequest,
        MemberListResponse, MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest,
        MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
    },
};
use transport_core::MemberId;

use super::{backend::ServerBackend, error::ServerError};
use crate::config::Url;

/// The Cluster service.
pub struct Cluster<B> {
    backend: Arc<B>,
}

impl<B: ServerBackend> Cluster<B> {
    /// Serves this member's view of the cluster.
    pub fn new(backend: Arc<B>) -> Cluster<B> {
        Cluster { backend }
    }

    /// Adds a member.
    pub async fn add(&self, request: MemberAddRequest) -> Result<MemberAddResponse, ServerError> {
        let mut urls = peer_urls(&request.peer_urls)?;
        urls.sort();
        let (member, members) = self.backend.member_add(urls, request.is_learner).await?;
        Ok(MemberAddResponse {
            header: self.header(),
            member: Some(message(&member)),
            members: messages(&members),
        })
    }

    /// Removes a member.
    pub async fn remove(
        &self,
        request: MemberRemoveRequest,
    ) -> Result<MemberRemoveResponse, ServerError> {
        let members = self.backend.member_remove(MemberId(request.id)).await?;
        Ok(MemberRemoveResponse {
            header: self.header(),
            members: messages(&members),
        })
    }

    /// Changes a member's peer URLs. Other members end when they meet URLs that they cannot parse, so these are
    /// checked as those of a new member are.
    pub async fn update(
        &self,
        request: MemberUpdateRequest,
    ) -> Result<MemberUpdateResponse, ServerError> {
        let urls = peer_urls(&request.peer_urls)?;
        let id = MemberId(request.id);
        let members = self.backend.member_update(id, urls).await?;
        Ok(MemberUpdateResponse {
            header: self.header(),
            members: messages(&members),
        })
    }

    /// Lists the members, as this one knows them or as a majority does.
    pub async fn list(
        &self,
        request: MemberListRequest,
    ) -> Result<MemberListResponse, ServerError> {
        if request.linearizable {
            self.backend.linearizable().await?;
        }
        Ok(MemberListResponse {
            header: self.header(),
            members: messages(&self.backend.reader().members()),
        })
    }

    /// Gives a learner a vote.
    pub async fn promote(
        &self,
        request: MemberPromoteRequest,
    ) -> Result<MemberPromoteResponse, ServerError> {
        let members = self.backend.member_promote(MemberId(request.id)).await?;
        Ok(MemberPromoteResponse {
            header: self.header(),
            members: messages(&members),
        })
    }

    fn header(&self) -> Option<ResponseHeader> {
        let term = self.backend.status().term;
        Some(self.backend.responder().header(term))
    }
}

/// Reads peer URLs as etcd's `types.NewURLs` does: at least one, each with host and port and nothing behind it.
fn peer_urls(texts: &[String]) -> Result<Vec<Url>, ServerError> {
    let urls: Result<Vec<Url>, _> = texts.iter().map(|text| text.parse()).collect();
    match urls {
        Ok(urls) if !urls.is_empty() => Ok(urls),
        _ => Err(ApplyError::MemberBadUrls.into()),
    }
}

fn messages(members: &[Member]) -> Vec<MemberMessage> {
    members.iter().map(message).collect()
}

fn message(member: &Member) -> MemberMessage {
    MemberMessage {
        id: member.id.0,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_need_host_and_port() {
        for wrong in [
            &[][..],
            &["localhost:2380"],
            &["http://a:1", "http://b"],
            &["http://a:1/"],
            &["ftp://a:1"],
            &[""],
        ] {
            let texts: Vec<String> = wrong.iter().map(|text| text.to_string()).collect();
            assert_eq!(
                peer_urls(&texts),
                Err(ApplyError::MemberBadUrls.into()),
                "{wrong:?}"
            );
        }
        let good = ["http://b:1".to_string(), " https://[::1]:2380".to_string()];
        let urls = peer_urls(&good).unwrap();
        assert_eq!(urls[1].to_string(), "https://[::1]:2380");
    }
}
