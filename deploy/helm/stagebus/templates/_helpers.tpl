{{- define "stagebus.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "stagebus.selector" -}}
app.kubernetes.io/name: stagebus
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "stagebus.labels" -}}
{{ include "stagebus.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "stagebus.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The longest that a process may take to end, and a reserve, so that it is not killed before. */}}
{{- define "stagebus.gatewayGraceS" -}}
{{ add .Values.gateway.drainDelayS .Values.gateway.drainSpreadS 10 }}
{{- end -}}
{{/* 5 s for the last events: FLUSH_S in worker/worker_app.py. */}}
{{- define "stagebus.workerGraceS" -}}
{{ add .Values.worker.drainGraceS 5 10 }}
{{- end -}}

{{- define "stagebus.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "stagebus.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "stagebus.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "stagebus.selector" . | nindent 6 }}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "stagebus.selector" . | nindent 6 }}
{{- end -}}

{{- define "stagebus.commonEnv" -}}
{{- if .Values.providers }}
- {name: STAGEBUS_PROVIDERS, value: /etc/stagebus/providers.toml}
{{- end }}
{{- if .Values.webhooks }}
- {name: STAGEBUS_WEBHOOKS, value: /etc/stagebus/webhooks.toml}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "stagebus.dns" -}}
- to:
    - namespaceSelector: {}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
- ports:
    - {protocol: TCP, port: {{ .Values.redis.port }}}
{{- if .Values.redis.sentinelPort }}
    - {protocol: TCP, port: {{ .Values.redis.sentinelPort }}}
{{- end }}
{{- end -}}
