{{- /*
For your own chart, with this chart's context: {{ include "tollgate.sidecar" .Subcharts.tollgate }}. There are also
tollgate.labels and tollgate.gracePeriod.
*/}}

{{/* For a pod's initContainers: a sidecar that starts before the app's containers and ends after them. */}}
{{- define "tollgate.sidecar" -}}
- name: tollgate
  restartPolicy: Always
  {{- include "tollgate.body" . | trim | nindent 2 }}
{{- end }}

{{/* For a pod's volumes. With spool.volume "claims", tollgate-spool comes from volumeClaimTemplates. */}}
{{- define "tollgate.volumes" -}}
- name: tollgate-config
  configMap: { name: {{ include "tollgate.configmap" . | quote }} }
{{- $volume := include "tollgate.volume" . }}
{{- if eq $volume "emptyDir" }}
- name: tollgate-spool
  emptyDir: { sizeLimit: {{ (.Values.spool | default dict).size | default "1Gi" | toString | quote }} }
{{- else if eq $volume "claim" }}
- name: tollgate-spool
  persistentVolumeClaim: { claimName: {{ .Values.spool.claim | quote }} }
{{- end }}
- name: tollgate-run
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
- name: tollgate-no-token
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
{{- with include "tollgate.inputVolumes" . | trim }}
{{ . }}
{{- end }}
{{- end }}

{{/* For a StatefulSet's volumeClaimTemplates, with spool.volume "claims". */}}
{{- define "tollgate.claims" -}}
- metadata:
    name: tollgate-spool
    labels:
      app.kubernetes.io/name: {{ include "tollgate.name" . | quote }}
      app.kubernetes.io/instance: {{ .Release.Name | quote }}
  spec:
    accessModes: {{ (.Values.spool | default dict).accessModes | default (list "ReadWriteOncePod") | toJson }}
    {{- with (.Values.spool | default dict).storageClass }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests: { storage: {{ (.Values.spool | default dict).size | default "1Gi" | toString | quote }} }
{{- end }}

{{/* For a pod's annotations: with restartOnChange, a changed configuration restarts the pods. A keyring's always does: it
     reads its file once, and a caller that is removed must not get keys any more. */}}
{{- define "tollgate.annotations" -}}
{{- if or .Values.restartOnChange (eq (.Values.mode | default "") "keyring") -}}
tollgate/config-checksum: {{ include "tollgate.file" . | sha256sum | quote }}
{{- end }}
{{- end }}
